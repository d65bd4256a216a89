from __future__ import annotations

import math
import re

import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.measures.observed_drift import observed_drift
from holdfast.stats.features import Features


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "m"), [(8, 8), (64, 16), (130, 130), (300, 70), (3, 500)])
@pytest.mark.parametrize("shape", [(1,), (5,), (700,), (5, 9)])
def test_value_is_the_naive_one(site, features_of, n, m, shape):
    x, y = draw(n, *shape), draw(m, *shape, seed=1) + 0.3
    reading = observed_drift(features_of(x), features_of(y), site=site, step=7, lag=3)
    x, y = (each.double().reshape(len(each), shape[0], -1) for each in (x, y))
    shift = (y.mean((0, 2)) - x.mean((0, 2))) / x.std((0, 2), correction=0)
    assert reading.value == pytest.approx(float(shift.square().mean().sqrt()), rel=1e-5)
    assert (reading.n, reading.lag, reading.unit) == (min(n, m), 3, "reference SD")
    assert reading.noise_floor > 0


def test_a_real_difference_is_above_the_floor(site, features_of):
    x, y = draw(64, 16), draw(64, 16, seed=1)
    assert not observed_drift(features_of(x), features_of(y), site=site, step=1, lag=1).above_noise
    assert observed_drift(features_of(x), features_of(y + 0.5), site=site, step=1, lag=1).above_noise


def test_positions_are_not_samples(site, features_of):
    """One offset a sample, shared by 400 positions: by position the floor would be 20 times lower."""
    x, y = (draw(16, 1, 1, seed=seed).expand(16, 1, 400) for seed in (0, 1))
    reading = observed_drift(features_of(x), features_of(y), site=site, step=1, lag=1)
    assert reading.noise_floor > 0.4  # 1.96 √(2/16) = 0.69 in expectation


def test_large_batches_agree_with_their_floor_sample_by_sample(site, features_of):
    """Runs of neighbours change nothing but the number of arrangements: both floors estimate one quantile."""
    x, y = draw(60, 4), draw(60, 4, seed=1)
    single = observed_drift(features_of(x), features_of(y), site=site, step=1, lag=1)
    many = observed_drift(features_of(x.repeat(5, 1)), features_of(y.repeat(5, 1)), site=site, step=1, lag=1)
    assert many.value == pytest.approx(single.value, rel=1e-6)
    assert many.noise_floor == pytest.approx(single.noise_floor / math.sqrt(5), rel=0.25)


def test_a_nearly_dead_feature_scales_value_and_floor_alike(site, features_of):
    """A reference SD that is tiny by chance makes a huge shift in its unit, and as huge a floor."""
    x, y = torch.zeros(8, 4), torch.zeros(8, 4)
    x[:, :3], y[:, :3] = draw(8, 3), draw(8, 3, seed=1)
    x[0, 3] = 1e-3
    y[0, 3] = 1.0  # one sample of eight: the same sparse feature, by another sample
    reading = observed_drift(features_of(x), features_of(y), site=site, step=1, lag=1)
    assert reading.value > 100
    assert not reading.above_noise


def test_too_few_samples_never_rise_above_the_floor(site, in_unit):
    for n in (1, 2, 3):
        reading = observed_drift(in_unit(torch.zeros(n, 1)), in_unit(torch.ones(n, 1)), site=site, step=1, lag=1)
        assert reading.value == pytest.approx(1.0)
        assert not reading.above_noise


def test_identical_batches(site, features_of):
    x = draw(16, 3)
    reading = observed_drift(features_of(x), features_of(x), site=site, step=1, lag=1)
    assert reading.value == 0.0
    assert not reading.above_noise


def test_none_when_there_is_nothing_to_compare(site, features_of, in_unit):
    collapsed = Features(torch.zeros(8, 2), torch.zeros(2).double(), torch.zeros(2).double(), 1.0)
    assert observed_drift(collapsed, collapsed, site=site, step=1, lag=1) is None
    assert observed_drift(in_unit(torch.zeros(8, 2)), in_unit(torch.zeros(0, 2)), site=site, step=1, lag=1) is None
    broken = in_unit(torch.full((8, 2), math.nan))
    assert observed_drift(in_unit(torch.zeros(8, 2)), broken, site=site, step=1, lag=1) is None


def test_one_bad_sample_is_left_out(site, features_of):
    x, y = draw(16, 3), draw(16, 3, seed=1)
    bad = torch.cat([y, torch.tensor([[0.0, math.nan, 0.0]])])
    reading = observed_drift(features_of(x), features_of(bad), site=site, step=1, lag=1)
    assert reading.n == 16
    assert reading.value == observed_drift(features_of(x), features_of(y), site=site, step=1, lag=1).value


def test_other_features_are_refused(site, in_unit):
    text = "expected two observations of 2 features; got one of 3; compare observations of one site only"
    with pytest.raises(StatisticError, match=re.escape(text)):
        observed_drift(in_unit(torch.zeros(4, 2)), in_unit(torch.zeros(4, 3)), site=site, step=1, lag=1)


def test_samples_left_over_by_the_runs_count_in_every_arrangement(site, in_unit):
    """65 samples make 32 runs of two; one outlier in the sample left over is no evidence of a moved batch."""
    x, y = 1e-3 * draw(65, 1), 1e-3 * draw(65, 1, seed=1)
    y[-1] = 1000.0
    reading = observed_drift(in_unit(x), in_unit(y), site=site, step=1, lag=1)
    assert reading.value == pytest.approx(1000 / 65, rel=1e-3)
    assert not reading.noise_floor < 0.99 * reading.value
