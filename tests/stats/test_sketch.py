import math

import numpy as np
import pytest
import torch

from holdfast.stats.observation import observe
from holdfast.stats.sketch import Sketch, edges


def sketch_of(x, exponent=None):
    return observe(torch.as_tensor(x)[:, None, None], exponent=exponent).summary.sketch


@pytest.mark.parametrize("exponent", [-40, -3, 0, 9])
def test_edges_scale_by_a_power_of_two(exponent):
    assert np.array_equal(edges(exponent), edges(0) * 2.0**exponent)
    assert len(edges(exponent)) == 65
    assert np.isfinite(edges(exponent)).all()
    assert (np.diff(edges(exponent)) > 0).all()
    assert np.array_equal(edges(exponent), -edges(exponent)[::-1])
    assert np.array_equal(Sketch.edges(exponent), edges(exponent))


@pytest.mark.parametrize("rms", [1e-30, 0.3, 0.5, 1.0, 1.99, 2.0, 1e30])
def test_the_scale_suits_the_data(rms):
    scale = 2.0 ** Sketch.exponent_for(rms)
    assert rms / 8 <= scale < rms / 4 * (1 + 1e-15) or scale == rms / 4
    assert edges(Sketch.exponent_for(rms))[-2] > 30 * rms


@pytest.mark.parametrize("rms", [0.0, math.nan, math.inf])
def test_data_without_a_scale_get_the_unit(rms):
    assert Sketch.exponent_for(rms) == 0


@pytest.mark.parametrize("rms", [5e-324, 1.7e308])
def test_the_greatest_and_least_scales_have_finite_edges(rms):
    assert np.isfinite(edges(Sketch.exponent_for(rms))).all()
    assert (np.diff(edges(Sketch.exponent_for(rms))) > 0).all()


def test_quantiles_are_right_to_a_bin():
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(0)) * 3
    sketch = sketch_of(x)
    for q in (0.001, 0.05, 0.25, 0.5, 0.75, 0.99):
        want = float(x.quantile(q))
        width = np.diff(sketch.edges(sketch.exponent))[np.searchsorted(sketch.edges(sketch.exponent), want) - 1]
        assert abs(sketch.quantile(q) - want) < 0.2 * width  # interpolated, so better than the bin


def test_quantiles_over_empty_bins_and_ends():
    sketch = sketch_of(torch.tensor([-5.0, -5.0, 5.0, 5.0]), 0)
    assert sketch.quantile(0.25) < -4
    assert sketch.quantile(0.5) < -4
    assert sketch.quantile(0.51) > 4
    low, high = sketch.quantile(0.0), sketch.quantile(1.0)
    assert -7 < low < -4
    assert 4 < high < 7


def test_values_beyond_the_edges_stay_in_the_outermost_bins():
    sketch = sketch_of(torch.tensor([-1e30, 1e30]), 0)
    assert sketch.bins[0] == sketch.bins[63] == 1
    assert sketch.quantile(1.0) == edges(0)[-1]


def test_the_density_integrates_to_one_and_follows_the_normal():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    sketch = sketch_of(x)
    ends = edges(sketch.exponent)
    density = sketch.density()
    assert float((density * np.diff(ends)).sum()) == pytest.approx(1)
    middle = (ends[1:] + ends[:-1]) / 2
    normal = np.exp(-(middle**2) / 2) / math.sqrt(2 * math.pi)
    near = abs(middle) < 2
    np.testing.assert_allclose(density[near], normal[near], rtol=0.12)


def test_no_data_have_no_quantile():
    assert math.isnan(Sketch.empty().quantile(0.5))
    assert np.isnan(Sketch.empty().density()).all()
