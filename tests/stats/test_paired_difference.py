import math

import numpy as np
import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.stats.features import Features
from holdfast.stats.paired_difference import PairedDifference


def features(values):
    unit = torch.ones(values.shape[1], dtype=torch.float64)
    return Features(values.float(), unit, unit * 0, 1.0)


def test_mean_and_scatter_of_the_differences():
    a, b = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    difference = PairedDifference.of(features(a), features(b))
    d = (b.double() - a.double()).numpy()
    assert difference.n == 30
    np.testing.assert_allclose(difference.mean, d.mean(0))
    np.testing.assert_allclose(difference.variance, d.var(0, ddof=1))


def test_small_differences_of_large_values_keep_their_digits():
    a = torch.full((8, 1), 2000.0)
    b = a.nextafter(a + 1)
    assert PairedDifference.of(features(a), features(b)).mean.tolist() == [float(b[0, 0]) - 2000.0]


def test_the_squared_drift_is_unbiased():
    # 4,000 batches of 8 samples, true shift 0.3 of 2 features with SD 1 and scatter 1: E = 0.09.
    generator = torch.Generator().manual_seed(1)
    zero = features(torch.zeros(8, 2))
    sd = np.ones(2)
    found = [
        PairedDifference.of(zero, features(torch.randn(8, 2, generator=generator) + 0.3)).drift_squared(sd)
        for _ in range(4000)
    ]
    spread = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - 0.09) < 4 * spread
    assert spread < 0.01  # the naive 0.09 + 1 / 8 would fail by 30 spreads
    assert min(found) < 0  # not clipped


def test_features_without_a_unit_are_left_out():
    difference = PairedDifference(10, np.array([1.0, 50.0, 50.0, math.nan]), np.zeros(4))
    sd = np.array([2.0, 0.0, math.nan, 1.0])
    assert difference.drift_squared(sd) == 0.25
    assert difference.drift_squared(torch.tensor(sd)) == 0.25
    assert math.isnan(difference.drift_squared(np.zeros(4)))


def test_one_sample_is_too_few():
    with pytest.raises(StatisticError, match="expected at least 2 samples; got 1; observe a batch of 2 or more"):
        PairedDifference(1, np.zeros(2), np.zeros(2)).drift_squared(np.ones(2))


def test_other_samples_are_refused():
    with pytest.raises(
        StatisticError, match="expected the same 3 samples of 2 features; got 4 of 2; observe one batch"
    ):
        PairedDifference.of(features(torch.zeros(3, 2)), features(torch.zeros(4, 2)))


def test_other_features_do_not_merge():
    with pytest.raises(StatisticError, match="expected differences of 2 features; got differences of 3"):
        PairedDifference.empty(2) + PairedDifference.empty(3)


def test_no_samples():
    assert PairedDifference.of(features(torch.zeros(0, 2)), features(torch.zeros(0, 2))) == PairedDifference.empty(2)
