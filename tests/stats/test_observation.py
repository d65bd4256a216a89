import math

import numpy as np
import pytest
import torch

from holdfast.kernels import compiler
from holdfast.stats.observation import observe
from holdfast.stats.sketch import Sketch


@pytest.fixture(params=["reference", "compiled"], autouse=True)
def _path(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(compiler, "kernel", lambda: None)
    else:
        assert compiler.wait(240.0)


def test_everything_about_a_block():
    x = torch.randn(20, 6, 5, generator=torch.Generator().manual_seed(0)) + 1
    seen = observe(x, threshold=1.5)
    wide = x.double()
    assert seen.summary.moments.mean == pytest.approx(float(wide.mean()))
    assert seen.summary.extremes.low == float(x.min())
    assert seen.summary.extremes.high == float(x.max())
    assert seen.summary.counts.beyond == int((x.abs() > 1.5).sum())
    assert seen.summary.sketch.exponent == Sketch.exponent_for(seen.summary.moments.rms)
    assert seen.summary.sketch.count == 600
    np.testing.assert_allclose(seen.channels.mean, wide.mean((0, 2)))
    torch.testing.assert_close(seen.features.values, x.mean(2))
    torch.testing.assert_close(seen.features.sd, wide.std((0, 2), correction=0))
    torch.testing.assert_close(seen.features.mean, wide.mean((0, 2)))
    assert seen.features.rms == pytest.approx(float(wide.square().mean().sqrt()))


def test_a_given_exponent_is_kept():
    x = torch.randn(20, 6, 5)
    assert [observe(x, exponent=e).summary.sketch.exponent for e in (-9, 0, 4)] == [-9, 0, 4]


def test_without_a_threshold_nothing_is_beyond():
    assert observe(torch.full((2, 2, 2), 3e38)).summary.counts.beyond == 0


def test_values_that_are_not_finite_are_counted_and_left_out():
    x = torch.tensor([1.0, 3.0, math.nan, math.inf, -math.inf, math.inf])[:, None, None]
    summary = observe(x).summary
    assert (summary.counts.total, summary.counts.finite) == (6, 2)
    assert (summary.counts.nan, summary.counts.positive_inf, summary.counts.negative_inf) == (1, 2, 1)
    assert (summary.moments.count, summary.moments.mean, summary.moments.variance) == (2, 2.0, 1.0)


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (3, 2, 0)])
def test_empty_blocks(shape):
    seen = observe(torch.empty(shape))
    assert seen.summary.counts.total == 0
    assert seen.channels.channels == shape[1]
    assert seen.features.values.shape == shape[:2]
    assert seen.features.collapsed.all()


def test_one_element():
    seen = observe(torch.tensor([[[2.5]]]))
    assert (seen.summary.moments.mean, seen.summary.moments.sd) == (2.5, 0.0)
    assert seen.features.values.tolist() == [[2.5]]


def test_overflow_is_far_away():
    seen = observe(torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(1)) * 1e30)
    assert math.isfinite(seen.summary.moments.m4)
    assert seen.summary.moments.kurtosis == pytest.approx(3, abs=1)
    assert torch.isfinite(seen.features.sd).all()


def test_training_state_is_untouched():
    x = torch.randn(8, 3, 2, requires_grad=True)
    state = torch.get_rng_state()
    version = x._version
    seen = observe(x * 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert x._version == version
    assert not seen.features.values.requires_grad
    assert not seen.features.sd.requires_grad


@pytest.mark.parametrize("mode", ["inference", "autocast"])
def test_under_other_modes(mode):
    with torch.inference_mode() if mode == "inference" else torch.autocast("cpu"):
        assert observe(torch.ones(4, 2, 1)).summary.moments.mean == 1
