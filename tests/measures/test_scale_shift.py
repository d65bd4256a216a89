from __future__ import annotations

import math

import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.measures.scale_shift import scale_shift


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 9), (64, 9, 5)])
def test_is_the_median_over_features(site, features_of, shape):
    x = draw(*shape)
    factor = torch.ones(9)
    factor[:5] = 2.0  # five of nine doubled: the median is ln 2 whatever the others did
    factor[8] = 1000.0
    y = x * factor.reshape(1, 9, *([1] * (len(shape) - 2)))
    reading = scale_shift(features_of(x), features_of(y), site=site, step=2, lag=1)
    assert reading.value == pytest.approx(math.log(2), rel=1e-5)
    assert (reading.n, reading.unit, reading.lag) == (64, "nats", 1)
    # Samples with several positions: the spread sample by sample is not known.
    assert (reading.noise_floor is None) == (len(shape) == 3)
    assert reading.above_noise


def test_halving_and_doubling_do_not_cancel(site, features_of):
    x = draw(32, 2)
    y = x * torch.tensor([2.0, 0.5])
    reading = scale_shift(features_of(x), features_of(y), site=site, step=1, lag=1)
    assert reading.value == pytest.approx(math.log(2), rel=1e-5)


def test_nothing_moved(site, features_of):
    x = features_of(draw(32, 4))
    reading = scale_shift(x, x, site=site, step=1, lag=1)
    assert (reading.value, reading.noise_floor) == (0.0, 0.0)


@pytest.mark.parametrize(("n", "channels"), [(16, 1), (64, 8), (100, 5)])
def test_null_exceedance(shapes_unchecked, site, features_of, n, channels):
    """Per-sample noise of one size before and after: at most 6 % of 1,000 readings lie above the floor."""
    above = 0
    for trial in range(1000):
        common = draw(n, channels, seed=3 * trial)
        x = common + 0.3 * draw(n, channels, seed=3 * trial + 1)
        y = common + 0.3 * draw(n, channels, seed=3 * trial + 2)
        above += scale_shift(features_of(x), features_of(y), site=site, step=1, lag=1).above_noise
    # 5 % and two standard errors of 1,000 readings
    assert above <= 0.064 * 1000


def test_none_when_too_many_features_collapse(site, features_of):
    x, y = draw(16, 4), draw(16, 4)
    y[:, :3] = 0.0
    assert scale_shift(features_of(x), features_of(y), site=site, step=1, lag=1) is None
    assert scale_shift(features_of(y), features_of(x), site=site, step=1, lag=1) is None


def test_other_features_are_refused(site, features_of):
    with pytest.raises(StatisticError, match="two observations of 2 features; got one of 3"):
        scale_shift(features_of(draw(4, 2)), features_of(draw(4, 3)), site=site, step=1, lag=1)
