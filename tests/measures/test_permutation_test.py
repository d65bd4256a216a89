from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.measures import QUANTITIES
from holdfast.measures.kolmogorov_smirnov import kolmogorov_smirnov
from holdfast.measures.permutation_test import permutation_test, split_half_floor
from holdfast.measures.wasserstein1 import wasserstein1


def draw(n, seed):
    return np.random.default_rng(seed).normal(size=n)


def of_maps(a, b):
    return wasserstein1(a.ravel(), b.ravel())


def test_p_is_that_of_all_arrangements():
    """3 against 3: SciPy goes through all 20 arrangements, a sample of 2,000 agrees to three standard errors."""
    stats = pytest.importorskip("scipy.stats")
    x, y = np.array([0.1, 0.5, 1.7]), np.array([1.0, 2.2, 3.1])
    exact = stats.permutation_test((x, y), wasserstein1, alternative="greater", n_resamples=np.inf).pvalue
    found = permutation_test(wasserstein1, x, y, permutations=2000)
    assert found.p_value == pytest.approx(exact, abs=3 * np.sqrt(exact / 2000))
    assert found.n == 3


def test_a_real_difference_gives_the_least_p():
    found = permutation_test(kolmogorov_smirnov, draw(40, 0), draw(30, 1) + 3)
    assert found.p_value == 1 / 200
    assert found.value > found.noise_floor
    assert found.n == 30


def test_what_belongs_to_a_sample_stays_together():
    """16 samples of 100 equal positions: as 1,600 values they would be told apart in most draws."""
    found = []
    for seed in range(20):
        maps = np.repeat(draw(32, seed), 100).reshape(2, 16, 100)
        whole = permutation_test(of_maps, *maps, permutations=39)
        by_position = permutation_test(wasserstein1, *maps.reshape(2, -1), permutations=39)
        assert whole.value == by_position.value
        found.append((whole.p_value <= 0.05, by_position.p_value <= 0.05))
    whole, by_position = np.sum(found, axis=0)
    assert whole <= 5
    assert by_position >= 18


def test_takes_tensors_and_gives_readings(site):
    x, y = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
    found = permutation_test(wasserstein1, x, y)
    reading = found.reading(QUANTITIES["wasserstein1"], site=site, step=5, lag=2)
    assert (reading.measure, reading.value, reading.noise_floor, reading.n, reading.lag) == (
        "wasserstein1",
        found.value,
        found.noise_floor,
        20,
        2,
    )
    assert found == permutation_test(wasserstein1, x.numpy(), y.numpy())


def test_the_seed_is_private():
    x, y = draw(20, 0), draw(20, 1)
    state = np.random.get_state()[1].tolist()
    a, b = (permutation_test(wasserstein1, x, y, seed=seed) for seed in (0, 1))
    assert np.random.get_state()[1].tolist() == state
    assert a.value == b.value
    assert a.noise_floor != b.noise_floor


def test_halves_of_tensors_and_arrays():
    x = draw(64, 0)
    assert split_half_floor(wasserstein1, x, rate=0.5) == split_half_floor(wasserstein1, torch.from_numpy(x), rate=0.5)
    # one more sample than halves need: whole batches are larger than two halves by one
    odd = split_half_floor(wasserstein1, x[:63], rate=0.5)
    assert odd == pytest.approx(split_half_floor(wasserstein1, x, rate=0.5), rel=0.3)


def test_bad_input():
    with pytest.raises(StatisticError, match="at least 2 samples on each side; got 1"):
        permutation_test(wasserstein1, draw(1, 0), draw(5, 0))
    with pytest.raises(StatisticError, match=r"two samples of shape \(3,\) each; got \(4,\) in the second"):
        permutation_test(wasserstein1, np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(StatisticError, match="at least 4 samples to cut in two; got 3"):
        split_half_floor(wasserstein1, draw(3, 0), rate=0.5)
