from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from holdfast.measures.scale_shift import scale_shift
from holdfast.measures.scale_shift_p95 import scale_shift_p95


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_few_features_that_explode(site, features_of):
    x = draw(64, 40)
    y = x * torch.where(torch.arange(40) < 4, 10.0, 1.0)
    reading = scale_shift_p95(features_of(x), features_of(y), site=site, step=2, lag=1)
    assert reading.value == pytest.approx(math.log(10), rel=1e-5)
    assert reading.above_noise
    assert scale_shift(features_of(x), features_of(y), site=site, step=2, lag=1).value == pytest.approx(0, abs=1e-6)


def test_is_the_percentile_over_features(site, features_of):
    x = draw(16, 30, 5)
    factor = torch.linspace(0.2, 3.0, 30)
    reading = scale_shift_p95(features_of(x), features_of(x * factor[:, None]), site=site, step=2, lag=1)
    assert reading.value == pytest.approx(np.quantile(np.abs(np.log(factor.numpy())), 0.95), rel=1e-4)
    assert reading.noise_floor is None


@pytest.mark.parametrize(("n", "channels"), [(64, 8), (100, 40)])
def test_null_exceedance(shapes_unchecked, site, features_of, n, channels):
    """Per-sample noise of one size before and after: at most 5 % and two standard errors of 500 above the floor."""
    above = 0
    for trial in range(500):
        common = draw(n, channels, seed=3 * trial)
        x = common + 0.3 * draw(n, channels, seed=3 * trial + 1)
        y = common + 0.3 * draw(n, channels, seed=3 * trial + 2)
        above += scale_shift_p95(features_of(x), features_of(y), site=site, step=1, lag=1).above_noise
    assert above <= 0.07 * 500
