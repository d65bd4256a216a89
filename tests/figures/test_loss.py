from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.core.event import Event
from holdfast.core.finding import Finding
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.figures.loss import POINTS, loss, running_median, thinned
from holdfast.store.memory import MemoryRun


def _named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_the_lines_are_the_series(run):
    figure = loss(run)
    for name, words in (("loss", "loss, each step"), ("gradient-norm", "gradient norm, each step")):
        steps, values = run.values(name)
        np.testing.assert_array_equal(_named(figure, words).x, steps)
        np.testing.assert_array_equal(_named(figure, words).y, values)


def test_the_median_is_the_median_of_its_window():
    values = np.random.default_rng(0).normal(size=50)
    expected = [np.median(values[max(0, at - 3) : at + 4]) for at in range(50)]
    np.testing.assert_allclose(running_median(values, 7), expected)


def test_thinning_loses_no_spike():
    values = np.zeros(100_000)
    values[[17, 54_321]] = 9.0, -7.0
    steps, kept = thinned(np.arange(1, 100_001), values)
    assert len(steps) <= POINTS
    assert (np.diff(steps) > 0).all()
    assert kept[steps == 18] == 9.0
    assert kept[steps == 54_322] == -7.0


def test_findings_are_marked_at_their_strongest_evidence_by_rank(run):
    site = run.sites(port="input")[3]
    evidence = tuple(run.readings("parameter-drift", site, lag=1)[10:12])
    finding = Finding("shifting-input", "critical", (site,), "it <b>moves</b>", evidence, rank=1)
    figure = loss(run, [finding, Finding("x", "info", (site,), "no evidence", (), rank=2)])
    mark = _named(figure, "finding: critical")
    assert list(mark.x) == [evidence[0].step]
    assert list(mark.text) == ["1"]
    assert "1. shifting-input (critical): it &lt;b&gt;moves&lt;/b&gt;" in mark.customdata[0]


def test_events_are_marked_but_not_the_monitor_s_bookkeeping(run):
    mark = _named(loss(run), "event")
    assert list(mark.x) == [200]  # the alarm; the cadence event at step 400 is no news of training


def test_a_loss_that_is_not_finite_is_a_cross():
    run = MemoryRun()
    for step, value in enumerate((2.0, 1.0, math.nan, math.inf), start=1):
        run.write(StepRecord(step, values={"loss": value}))
    figure = loss(run)
    cross = _named(figure, "loss not finite")
    assert list(cross.x) == [3, 4]
    assert list(cross.text) == ["nan", "inf"]
    assert "not finite at 2 steps" in figure.layout.meta["alt"]


def test_a_loss_that_never_was_finite():
    run = MemoryRun()
    run.write(StepRecord(1, values={"loss": math.nan}))
    assert "never finite" in loss(run).layout.meta["alt"]


def test_the_axes_have_their_units(run):
    titles = [figure_axis.title.text for figure_axis in loss(run).select_yaxes() if figure_axis.title.text]
    assert titles == ["loss (its own unit)", "gradient norm (L2 norm)"]


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_the_axis_is_logarithmic_only_where_the_series_spans_much(scale):
    run = MemoryRun()
    for step in range(1, 30):
        run.write(StepRecord(step, values={"loss": scale ** (step / 29)}))
    assert loss(run).layout.yaxis.type == ("log" if scale > 1 else None)


def test_nothing_to_show(empty_run):
    assert loss(empty_run).layout.annotations[0].text == "no readings"
    empty_run.write(StepRecord(1, events=(Event(1, "alarm", "x", Site("a", "input")),)))
    assert loss(empty_run).layout.meta["blank"]
