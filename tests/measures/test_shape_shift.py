from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.measures.shape_shift import FEWEST, shape_shift


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_is_the_median_of_scipys_after_standardising(site, features_of):
    stats = pytest.importorskip("scipy.stats")
    x, y = draw(40, 7), draw(40, 7, seed=1).exp()
    expected = np.median([stats.wasserstein_distance(stats.zscore(x[:, j]), stats.zscore(y[:, j])) for j in range(7)])
    reading = shape_shift(features_of(x), features_of(y), site=site, step=2, lag=1)
    assert reading.value == pytest.approx(expected, rel=1e-5)
    assert (reading.measure, reading.unit, reading.n, reading.lag) == ("shape-shift", "reference SD", 40, 1)
    assert reading.above_noise


def test_mean_and_spread_are_no_shape(site, features_of):
    x = draw(32, 5)
    scale = torch.tensor([1.0, 0.5, 2.0, 30.0, 1e-3])
    reading = shape_shift(features_of(x), features_of(3 + scale * x), site=site, step=1, lag=1)
    assert reading.value < 1e-3
    # turned over it is the mirror image, and for a symmetric shape the same
    sorted_ = torch.linspace(-1, 1, 33)[:, None]
    assert shape_shift(features_of(sorted_), features_of(-sorted_), site=site, step=1, lag=1).value < 1e-6


def test_normal_to_exponential_is_what_the_card_says(site, features_of):
    """∫ |Φ⁻¹(u) + ln(1 − u) + 1| du by quadrature."""
    from scipy import integrate, stats

    expected, _ = integrate.quad(lambda u: abs(stats.norm.ppf(u) + math.log1p(-u) + 1), 0, 1, limit=300)
    u = (np.arange(4000) + 0.5) / 4000
    x, y = stats.norm.ppf(u), -np.log1p(-u)
    reading = shape_shift(*(features_of(torch.from_numpy(each)[:, None]) for each in (x, y)), site=site, step=1, lag=1)
    assert expected == pytest.approx(0.31, abs=0.005)
    assert reading.value == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize(("n", "channels"), [(8, 1), (32, 90)])
def test_null_exceedance(shapes_unchecked, site, features_of, n, channels):
    """Skewed samples with noise of one kind before and after: 3 of 64 above, and two standard errors of 150."""
    above = 0
    for trial in range(150):
        common = draw(n, channels, seed=3 * trial).exp()
        x = common + 0.3 * draw(n, channels, seed=3 * trial + 1)
        y = common + 0.3 * draw(n, channels, seed=3 * trial + 2)
        above += shape_shift(features_of(x), features_of(y), site=site, step=1, lag=1).above_noise
    assert above / 150 == pytest.approx(3 / 64, abs=0.0345)


def test_saturation_is_seen(site, features_of):
    x = draw(64, 16)
    gain = 3 * x
    before, after = torch.tanh(x), torch.tanh(gain)
    assert shape_shift(features_of(before), features_of(after), site=site, step=1, lag=1).above_noise


def test_no_figure(site, features_of):
    x = draw(FEWEST - 1, 3)
    assert shape_shift(features_of(x), features_of(x), site=site, step=1, lag=1) is None
    x, y = draw(16, 4), draw(16, 4)
    y[:, :3] = 2.0
    assert shape_shift(features_of(x), features_of(y), site=site, step=1, lag=1) is None
    assert shape_shift(features_of(y), features_of(x), site=site, step=1, lag=1) is None


def test_samples_that_are_not_finite_are_left_out(site, in_unit):
    x, y = draw(20, 3), draw(20, 3, seed=1)
    expected = shape_shift(in_unit(x[1:]), in_unit(y[1:]), site=site, step=1, lag=1)
    y[0, 1] = math.nan
    assert shape_shift(in_unit(x), in_unit(y), site=site, step=1, lag=1) == expected


def test_a_feature_that_wakes_is_no_warning(site, features_of):
    """One sample of 16 active: most exchanges leave it active on one side, some leave it without any spread."""
    x, y = torch.zeros(16, 1), torch.zeros(16, 1)
    x[0], y[0] = 1.0, 1.0
    y[1] = 1e-3
    reading = shape_shift(features_of(x), features_of(y), site=site, step=1, lag=1)
    assert math.isfinite(reading.noise_floor)


def test_large_sites_are_no_heavy_work(site, features_of):
    x = draw(4096, 16)
    reading = shape_shift(features_of(x), features_of(x.sinh()), site=site, step=1, lag=1)
    assert (reading.n, reading.above_noise) == (4096, True)


def test_other_samples_are_refused(site, in_unit):
    text = "expected the same 20 samples twice; got 19 in the second; observe one batch twice"
    with pytest.raises(StatisticError, match=re.escape(text)):
        shape_shift(in_unit(draw(20, 2)), in_unit(draw(19, 2)), site=site, step=1, lag=1)
