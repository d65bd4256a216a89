from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from holdfast.measures.observed_drift import observed_drift
from holdfast.measures.sampling_drift import sampling_drift


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "m"), [(64, 64), (64, 16)])
def test_closed_form_for_normal_features(site, features_of, n, m):
    """One position a sample: s² = σ² and the figure is √(1/n + 1/m)."""
    reading = sampling_drift(features_of(draw(n, 40)), features_of(draw(m, 40, seed=1)), site=site, step=1, lag=4)
    assert reading.value == pytest.approx(math.sqrt(1 / n + 1 / m), rel=0.05)
    assert reading.n == min(n, m)
    assert reading.lag == 4


@pytest.mark.parametrize("positions", [1, 12])
def test_is_the_root_mean_square_of_null_differences(shapes_unchecked, site, features_of, positions):
    """What it promises: the mean square of observed drift over pairs of batches at unchanged parameters."""
    observed, expected = [], []
    for trial in range(400):
        # offsets shared by a sample's positions: positions are not independent
        x, y = (draw(24, 5, 1, seed=4 * trial + k) + draw(24, 5, positions, seed=4 * trial + 2 + k) for k in range(2))
        a, b = features_of(x), features_of(y)
        observed.append(observed_drift(a, b, site=site, step=1, lag=1).value ** 2)
        expected.append(sampling_drift(a, b, site=site, step=1, lag=1).value ** 2)
    error = np.std(observed) / math.sqrt(len(observed))
    # the unit is the reference batch's own SD: E[1/σ̂²] is about 3 % above 1/σ² at n = 24
    assert np.mean(observed) == pytest.approx(np.mean(expected), abs=3 * error)


@pytest.mark.parametrize(("n", "channels"), [(16, 1), (16, 20), (64, 10)])
def test_interval_covers_the_expectation(shapes_unchecked, site, in_unit, n, channels):
    """In a unit that is given, the truth is √(2/n); 95 % intervals cover it in 90 to 99 % of 1,000 trials."""
    hits = 0
    for trial in range(1000):
        a, b = (in_unit(draw(n, channels, seed=2 * trial + k)) for k in range(2))
        low, high = sampling_drift(a, b, site=site, step=1, lag=1).interval
        hits += low <= math.sqrt(2 / n) <= high
    assert 900 <= hits <= 990


def test_none_with_too_little(site, features_of, in_unit):
    one = in_unit(torch.zeros(1, 2))
    assert sampling_drift(one, one, site=site, step=1) is None
    constant = features_of(torch.ones(8, 2))
    assert sampling_drift(constant, constant, site=site, step=1) is None
