from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.measures.sliced_wasserstein import directions, sliced_wasserstein, sliced_wasserstein_shift
from holdfast.measures.wasserstein1 import wasserstein1


def draw(n, d, seed):
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 13)])
def test_is_the_mean_of_scipys_over_the_directions(n, m):
    stats = pytest.importorskip("scipy.stats")
    x, y = draw(n, 5, 0), 1 + 2 * draw(m, 5, 1)
    expected = np.mean([stats.wasserstein_distance(x @ each, y @ each) for each in directions(5, 64, 0)])
    assert sliced_wasserstein(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [2, 3, 50])
def test_a_shift_is_the_mean_cosine_of_it(d):
    """|δ| Γ(d/2)/(√π Γ((d+1)/2)); over 4,000 directions to three standard errors, which are below 0.75/√4000."""
    x = draw(20, d, 0)
    shift = draw(1, d, 1)[0]
    length = float(np.linalg.norm(shift))
    expected = length * math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)
    assert sliced_wasserstein(x, x + shift, projections=4000) == pytest.approx(expected, rel=0.04)
    # with 64 directions, as the card says: some 0.1 of it
    assert sliced_wasserstein(x, x + shift) == pytest.approx(expected, rel=0.3)


def test_sees_a_correlation_that_no_single_feature_shows():
    x, y = draw(2000, 2, 0), draw(2000, 2, 1)
    y[:, 1] = 0.9 * y[:, 0] + math.sqrt(1 - 0.81) * y[:, 1]
    assert max(wasserstein1(x[:, j], y[:, j]) for j in range(2)) < 0.1
    assert sliced_wasserstein(x, y) > 0.15


def test_one_seed_one_figure():
    x, y = draw(30, 4, 0), draw(30, 4, 1)
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y) == sliced_wasserstein(y, x)
    assert sliced_wasserstein(x, y) != sliced_wasserstein(x, y, seed=1)


def test_bad_input():
    with pytest.raises(StatisticError, match="two samples of 3 features; got one of 4"):
        sliced_wasserstein(draw(5, 3, 0), draw(5, 4, 0))
    with pytest.raises(StatisticError, match=r"x\.flatten\(1\)"):
        sliced_wasserstein(draw(5, 3, 0)[0], draw(5, 3, 0))


def test_a_shift_of_the_same_samples_in_reference_sd(site, features_of):
    x = torch.from_numpy(draw(50, 6, 0)).float()
    y = x + torch.from_numpy(draw(50, 6, 1)).float()
    before, after = features_of(x), features_of(y)
    reading = sliced_wasserstein_shift(before, after, site=site, step=4, lag=1)
    sd = x.std(0, correction=0)
    assert reading.value == pytest.approx(sliced_wasserstein(x / sd, y / sd), rel=1e-5)
    assert (reading.n, reading.unit, reading.step, reading.lag) == (50, "reference SD", 4, 1)
    # whatever the features' own scales
    scale = torch.tensor([1.0, 100.0, 1e-3, 1.0, 5.0, 1.0])
    scaled = sliced_wasserstein_shift(features_of(x * scale), features_of(y * scale), site=site, step=4, lag=1)
    assert scaled.value == pytest.approx(reading.value, rel=1e-4)
    assert sliced_wasserstein_shift(before, before, site=site, step=4, lag=1).value == 0.0
    assert sliced_wasserstein_shift(before, features_of(x + 0.2), site=site, step=4, lag=1).above_noise
    assert sliced_wasserstein_shift(features_of(x[:7]), features_of(y[:7]), site=site, step=4, lag=1) is None


def test_null_exceedance_of_a_shift(shapes_unchecked, site, in_unit):
    """Noise of one kind before and after: 3 of 64 above, and three standard errors of 200."""
    above = 0
    for trial in range(200):
        common, *noise = (torch.from_numpy(draw(24, 4, 3 * trial + k)) for k in range(3))
        x, y = (in_unit(common.exp() + 0.3 * each) for each in noise)
        above += sliced_wasserstein_shift(x, y, site=site, step=1, lag=1).above_noise
    assert above / 200 == pytest.approx(3 / 64, abs=0.045)
