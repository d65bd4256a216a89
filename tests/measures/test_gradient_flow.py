"""Gradient norm, weight norm, update ratio, backward gain."""

from __future__ import annotations

import math
import re

import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.measures.backward_gain import backward_gain
from holdfast.measures.gradient_norm import gradient_norm
from holdfast.measures.l2_norm import l2_norm
from holdfast.measures.update_ratio import update_ratio
from holdfast.measures.weight_norm import weight_norm
from holdfast.stats.moments import Moments
from holdfast.stats.observation import observe


def test_every_source_gives_one_norm(site):
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    expected = float(x.double().norm())
    summary = observe(x.unsqueeze(2)).summary
    for source, n in ((x, None), (summary, None), (summary.moments, None), (expected, 30)):
        reading = gradient_norm(source, site=site, step=1, n=n)
        assert reading.value == pytest.approx(expected, rel=1e-6)
        assert (reading.n, reading.unit) == (30, "L2 norm")


def test_a_sample_of_elements_is_enlarged(site):
    x = torch.full((4, 3, 1), 2.0)
    reading = gradient_norm(observe(x).summary, site=site, step=1, n=1200)
    assert reading.value == pytest.approx(2.0 * math.sqrt(1200))
    assert reading.n == 12


def test_norms_of_large_and_small_numbers():
    assert l2_norm(torch.full((4,), 1e30), None)[0] == pytest.approx(2e30)
    assert l2_norm(torch.full((4,), 1e-30), None)[0] == pytest.approx(2e-30)
    assert l2_norm(torch.full((4,), 300.0, dtype=torch.float16), None)[0] == pytest.approx(600.0)
    assert l2_norm(torch.tensor([3 + 4j]), None) == (pytest.approx(5.0), 1)
    assert l2_norm(torch.zeros(0), None) == (0.0, 0)
    assert l2_norm(Moments.empty(), None) == (0.0, 0)
    assert math.isnan(l2_norm(torch.tensor([math.nan]), None)[0])


def test_a_number_needs_its_size(site):
    text = "expected the number of elements with a norm given as a number; got n=None; pass n=tensor.numel()"
    with pytest.raises(StatisticError, match=re.escape(text)):
        weight_norm(3.0, site=site, step=1)


def test_no_gradient_is_tracked(site):
    weight = torch.nn.Parameter(torch.ones(4))
    assert weight_norm(weight, site=site, step=1).value == 2.0
    assert weight.grad is None


def test_update_ratio(site):
    before = torch.tensor([3.0, 4.0])
    after = torch.tensor([3.0, 4.5])
    reading = update_ratio(after - before, before, site=site, step=1)
    assert (reading.value, reading.n, reading.lag, reading.unit) == (pytest.approx(0.1), 2, 1, "ratio")
    assert update_ratio(0.5, 5.0, site=site, step=1, n=2).value == pytest.approx(0.1)
    assert update_ratio(0.0, 0.0, site=site, step=1, n=2).value == 0.0
    grown = update_ratio(0.1, 0.0, site=site, step=1, n=2)
    assert grown.value == math.inf
    assert not grown.above_noise
    assert math.isnan(update_ratio(math.nan, 0.0, site=site, step=1, n=2).value)


def norm(path, value, n=64):
    return Reading("gradient-norm", Site(path, "grad_output"), 3, value, "L2 norm", n)


def test_backward_gain(site):
    gain = backward_gain(norm("fc1", 1.0, n=32), norm("fc2", 4.0))
    assert (gain.value, gain.site, gain.n, gain.unit) == (0.25, Site("fc2", "grad_output"), 32, "ratio")
    assert gain.interval is None
    assert backward_gain(norm("fc1", 0.0), norm("fc2", 4.0)).value == 0.0
    moved = backward_gain(norm("fc1", 1.0), norm("fc2", 4.0), site=site, step=7)
    assert (moved.site, moved.step) == (site, 7)


@pytest.mark.parametrize(("source", "own"), [(1.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_no_backward_gain_without_a_gradient(source, own):
    assert backward_gain(norm("fc1", source), norm("fc2", own)) is None
