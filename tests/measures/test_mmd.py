from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.measures.mmd import MOST, mmd, mmd_shift, mmd_test
from holdfast.measures.permutation_test import permutation_test


def draw(n, d, seed):
    return np.random.default_rng(seed).normal(size=(n, d))


def naive(x, y, h):
    """Definition by loops."""

    def k(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * h**2))

    n, m = len(x), len(y)
    within = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within += sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (12, 5), (2, 2)])
def test_is_the_definition_with_the_median_distance(n, m):
    distance = pytest.importorskip("scipy.spatial.distance")
    x, y = draw(n, 3, 0) + 100, draw(m, 3, 1) + 100.5
    h = float(np.median(distance.pdist(np.concatenate([x, y]))))
    # the squares' median is the square of the median where the number of pairs is odd, else between its neighbours'
    assert mmd(x, y, bandwidth=h) == pytest.approx(naive(x, y, h), rel=1e-9)
    assert mmd(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(naive(x, y, h), abs=5e-3)


def test_normal_distributions_by_closed_form():
    """E k of normals in one dimension: h/√(h²+2σ²) within, times exp(−δ²/2(h²+2σ²)) across; σ = 1, h = 1, δ = 1.

    Mean of 400 unbiased estimates of 60 samples each, to three standard errors.
    """
    expected = 2 / np.sqrt(3) * (1 - np.exp(-1 / 6))
    found = [mmd(draw(60, 1, 2 * k), draw(60, 1, 2 * k + 1) + 1, bandwidth=1.0) for k in range(400)]
    assert np.mean(found) == pytest.approx(expected, abs=3 * np.std(found) / 20)
    null = [mmd(draw(20, 1, 2 * k), draw(20, 1, 2 * k + 1), bandwidth=1.0) for k in range(400)]
    assert np.mean(null) == pytest.approx(0.0, abs=3 * np.std(null) / 20)
    assert min(null) < 0


def test_the_test_is_the_permutation_test_of_the_figure():
    x, y = draw(15, 2, 0), draw(11, 2, 1) + 0.7
    fast, plain = mmd_test(x, y), permutation_test(mmd, x, y)
    assert (fast.value, fast.n) == (pytest.approx(plain.value, rel=1e-12), plain.n)
    # other permutations, one null distribution
    assert fast.noise_floor == pytest.approx(plain.noise_floor, rel=0.35)
    assert fast.p_value == pytest.approx(plain.p_value, abs=0.05)


def test_a_common_offset_costs_no_digits():
    x, y = draw(12, 3, 0), draw(9, 3, 1)
    assert mmd(x + 1e6, y + 1e6) == pytest.approx(mmd(x, y), rel=1e-6)


def test_a_dead_layer_is_no_difference():
    assert mmd(np.zeros((5, 2)), np.zeros((6, 2))) == 0.0
    one = np.zeros((5, 2))
    one[0] = 3.0
    assert np.isfinite(mmd(one, np.zeros((6, 2))))


def test_bad_input():
    with pytest.raises(StatisticError, match="at least 2 samples on each side; got 1 and 5"):
        mmd(draw(1, 2, 0), draw(5, 2, 0))
    with pytest.raises(StatisticError, match="two samples of 2 features; got one of 3"):
        mmd(draw(4, 2, 0), draw(5, 3, 0))


def test_a_shift_is_the_definition_without_a_sample_against_itself(site, in_unit):
    x, y = (torch.from_numpy(draw(9, 2, seed)) for seed in (0, 1))
    reading = mmd_shift(in_unit(x), in_unit(y), site=site, step=4, lag=1)
    a, b = x.float().double().numpy(), y.float().double().numpy()
    distance = pytest.importorskip("scipy.spatial.distance")
    pairs = distance.pdist(np.concatenate([a, b]))
    assert len(pairs) % 2 == 1  # the median is one of them
    h = float(np.median(pairs))

    def k(p, q):
        return np.exp(-np.sum((p - q) ** 2) / (2 * h**2))

    total = sum(
        k(a[i], a[j]) + k(b[i], b[j]) - k(a[i], b[j]) - k(a[j], b[i]) for i in range(9) for j in range(9) if i != j
    )
    assert reading.value == pytest.approx(total / 72, rel=1e-6)
    assert (reading.n, reading.step, reading.lag, reading.measure) == (9, 4, 1, "mmd")


@pytest.mark.parametrize(("n", "channels"), [(8, 1), (40, 12)])
def test_null_exceedance_of_a_shift(shapes_unchecked, site, in_unit, n, channels):
    """Noise of one kind before and after: 5 % of 500 above, and three standard errors."""
    above = 0
    for trial in range(500):
        common, *noise = (torch.from_numpy(draw(n, channels, 3 * trial + k)) for k in range(3))
        x, y = (in_unit(common.exp() + 0.3 * each) for each in noise)
        above += mmd_shift(x, y, site=site, step=1, lag=1).above_noise
    assert 0.02 <= above / 500 <= 0.08


def test_a_shift_sees_what_moved(site, in_unit):
    x = torch.from_numpy(draw(64, 6, 0))
    assert mmd_shift(in_unit(x), in_unit(x), site=site, step=1, lag=1).value == pytest.approx(0.0, abs=1e-15)
    assert mmd_shift(in_unit(x), in_unit(x + 0.3), site=site, step=1, lag=1).above_noise
    assert mmd_shift(in_unit(x[:7]), in_unit(x[:7]), site=site, step=1, lag=1) is None
    many = torch.from_numpy(draw(700, 2, 0))
    assert mmd_shift(in_unit(many), in_unit(many + 1), site=site, step=1, lag=1).n == MOST
