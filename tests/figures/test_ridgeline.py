from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.figures.ridgeline import MOST_ROWS, OVERLAP, ridgeline
from holdfast.stats.observation import observe
from holdfast.store.memory import MemoryRun

SITE = Site("fc", "input")


def _run(*blocks):
    run = MemoryRun()
    exponent = None
    for step, block in enumerate(blocks, start=1):
        seen = observe(block.reshape(-1, 1, 1), exponent=exponent)
        exponent = seen.summary.sketch.exponent
        run.write(StepRecord(step, summaries={SITE: seen.summary}))
    return run


def _ridges(figure):
    return {trace.name: trace for trace in figure.data if trace.fill == "toself"}


def _area(trace, row):
    """Area between a ridge and its base line, in rows × activation."""
    half = len(trace.x) // 2
    x, y = np.array(trace.x[:half]), np.array(trace.y[:half]) - row
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def test_ridges_have_equal_area_and_stand_where_the_values_are():
    torch.manual_seed(0)
    figure = ridgeline(_run(torch.randn(8192), 4 * torch.randn(8192) + 10), SITE)
    ridges = _ridges(figure)
    areas = [_area(ridges["step 1"], 0), _area(ridges["step 2"], 1)]
    assert areas[0] == pytest.approx(areas[1], rel=0.02)  # each holds all its values, on one scale
    middle = figure.data[-1]
    np.testing.assert_allclose(middle.x, [0, 10], atol=0.6)  # to the width of a bin
    spread = np.array(middle.error_x.array) + np.array(middle.error_x.arrayminus)
    np.testing.assert_allclose(spread, [2 * 1.645, 8 * 1.645], rtol=0.15)


def test_exact_zeros_are_named_and_not_drawn():
    torch.manual_seed(0)
    values = torch.randn(8192).relu()
    figure = ridgeline(_run(values), SITE)
    ridge = _ridges(figure)["step 1"]
    peak = max(ridge.y)
    assert peak == pytest.approx(OVERLAP)
    # The density of the positive half falls from the left: no spike of zeros stands over it.
    half = len(ridge.x) // 2
    heights = np.array(ridge.y[:half])
    near_one = heights[np.searchsorted(ridge.x[:half], 1.0)]
    assert near_one / peak == pytest.approx(math.exp(-0.5), rel=0.25)
    assert min(ridge.x) >= 0
    share = 100 * float((values == 0).double().mean())
    assert f"exact zeros {share:.1f} % (not in the ridge)" in figure.data[-1].customdata[0]


def test_values_that_are_not_finite_are_named():
    block = torch.randn(64)
    block[:3] = math.nan
    figure = ridgeline(_run(block), SITE)
    assert "<b>3 not finite</b>" in figure.data[-1].customdata[0]


@pytest.mark.parametrize("block", [torch.zeros(16), torch.full((16,), 3.0)])
def test_a_constant(block):
    figure = ridgeline(_run(block), SITE)
    low, high = figure.layout.xaxis.range
    assert low < float(block[0]) < high


def test_nothing_but_nan_and_nothing_at_all(empty_run):
    figure = ridgeline(_run(torch.full((16,), math.nan)), SITE)
    assert figure.layout.annotations[0].text == "no finite value at any step"
    assert ridgeline(empty_run, SITE).layout.annotations[0].text == "no readings"


def test_many_steps_are_thinned_and_the_ends_stay():
    torch.manual_seed(0)
    figure = ridgeline(_run(*(torch.randn(64) for _ in range(101))), SITE)
    labels = list(figure.layout.yaxis.ticktext)
    assert len(labels) == MOST_ROWS
    assert (labels[0], labels[-1]) == ("1", "101")


def test_saturation_is_drawn_where_it_begins():
    figure = ridgeline(_run(torch.randn(64)), SITE, saturation=2.178)
    lines = next(trace for trace in figure.data if "saturated" in (trace.name or ""))
    assert [x for x in lines.x if x is not None] == [-2.178, -2.178, 2.178, 2.178]
    assert lines.name == "saturated beyond ±2.18"


def test_the_axes_have_their_units():
    figure = ridgeline(_run(torch.randn(64)), SITE)
    assert figure.layout.xaxis.title.text.startswith("activation (its own unit)")
    assert figure.layout.yaxis.title.text == "optimiser step (height: density)"
