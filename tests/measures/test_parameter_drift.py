from __future__ import annotations

import math
import re

import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.measures.parameter_drift import parameter_drift
from holdfast.measures.resampling import GROUPS
from holdfast.stats.features import Features
from holdfast.stats.paired_difference import PairedDifference


def moved(n, channels, drift, seed=0, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(n, channels, generator=generator)
    return before, before + drift + noise * torch.randn(n, channels, generator=generator)


@pytest.mark.parametrize("n", [2, 7, GROUPS, GROUPS + 1, 200])
@pytest.mark.parametrize("channels", [1, 5, 90])
def test_value_is_that_of_the_paired_difference(site, features_of, n, channels):
    before, after = (features_of(each) for each in moved(n, channels, 0.5))
    squared = PairedDifference.of(before, after).drift_squared(before.sd)
    reading = parameter_drift(before, after, site=site, step=5, lag=2)
    assert reading.value == pytest.approx(math.sqrt(max(0.0, squared)), rel=1e-9, abs=1e-9)
    assert (reading.measure, reading.unit, reading.n, reading.step, reading.lag) == (
        "parameter-drift",
        "reference SD",
        n,
        5,
        2,
    )
    low, high = reading.interval
    assert 0 <= low <= reading.value <= high
    assert reading.noise_floor >= 0


def test_features_are_averaged_before_the_clip(site, in_unit):
    # One feature that moved by 1 and one whose estimate is negative: d̄ = 0, s² = 4 · 4/3.
    before = torch.zeros(4, 2)
    after = torch.tensor([[1.0, 2.0], [1.0, -2.0], [1.0, 2.0], [1.0, -2.0]])
    reading = parameter_drift(in_unit(before), in_unit(after), site=site, step=1, lag=1)
    assert reading.value == pytest.approx(math.sqrt((1.0 - (16 / 3) / 4) / 2) if 1 > 4 / 3 else 0.0)
    after[:, 1] /= 2  # s² = 4/3: (1 − 1/3) / 2
    reading = parameter_drift(in_unit(before), in_unit(after), site=site, step=1, lag=1)
    assert reading.value == pytest.approx(math.sqrt(1 / 3))


def test_opposite_drifts_of_two_features_do_not_cancel(site, in_unit):
    before = torch.zeros(16, 2)
    after = torch.tensor([[0.3, -0.3]]).repeat(16, 1)
    reading = parameter_drift(in_unit(before), in_unit(after), site=site, step=1, lag=1)
    assert reading.value == pytest.approx(0.3)
    assert reading.above_noise


def test_unchanged_parameters_give_exactly_zero(site, features_of):
    before = features_of(torch.randn(32, 8, generator=torch.Generator().manual_seed(0)))
    reading = parameter_drift(before, before, site=site, step=1, lag=1)
    assert (reading.value, reading.noise_floor, reading.interval) == (0.0, 0.0, (0.0, 0.0))
    assert not reading.above_noise


def test_one_feature_gives_the_t_interval(site, in_unit):
    """For one feature the interval is Student's, up to the error of 199 draws of a normal quantile."""
    before, after = moved(40, 1, 3.0)
    reading = parameter_drift(in_unit(before), in_unit(after), site=site, step=1, lag=1)
    d = (after - before).double().numpy()[:, 0]
    half = 2.0227 * d.std(ddof=1) / math.sqrt(40)
    assert reading.interval[0] == pytest.approx(abs(d.mean()) - half, abs=0.25 * half)
    assert reading.interval[1] == pytest.approx(abs(d.mean()) + half, abs=0.25 * half)


def test_a_rotation_of_whitened_features_changes_nothing(site, in_unit):
    """Value, floor and interval depend on inner products of samples only."""
    before, after = moved(30, 6, 0.4)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))
    a = parameter_drift(in_unit(before), in_unit(after), site=site, step=1, lag=1)
    b = parameter_drift(in_unit(before @ rotation), in_unit(after @ rotation), site=site, step=1, lag=1)
    assert [a.value, a.noise_floor, *a.interval] == pytest.approx([b.value, b.noise_floor, *b.interval], rel=1e-4)


def test_scale_of_the_network_does_not_matter(site, features_of):
    before, after = moved(30, 6, 0.4)
    a = parameter_drift(features_of(before), features_of(after), site=site, step=1, lag=1)
    b = parameter_drift(features_of(1024 * before), features_of(1024 * after), site=site, step=1, lag=1)
    assert [a.value, a.noise_floor, *a.interval] == pytest.approx([b.value, b.noise_floor, *b.interval], rel=1e-5)


def test_collapsed_features_are_left_out(site, in_unit):
    before, after = moved(20, 3, 0.5)
    sd = torch.tensor([1.0, 0.0, 1.0]).double()
    reference = Features(before, sd, torch.zeros(3).double(), 1.0)
    with_dead = parameter_drift(reference, in_unit(after), site=site, step=1, lag=1)
    without = parameter_drift(in_unit(before[:, [0, 2]]), in_unit(after[:, [0, 2]]), site=site, step=1, lag=1)
    assert with_dead == without


def test_no_figure_with_more_than_half_collapsed(site, in_unit):
    before, after = moved(20, 4, 0.5)
    sd = torch.tensor([1.0, 1.0, 0.0, math.nan]).double()
    half = Features(before, sd, torch.zeros(4).double(), 1.0)
    assert parameter_drift(half, in_unit(after), site=site, step=1, lag=1) is not None
    before, after = moved(20, 5, 0.5)
    sd = torch.tensor([1.0, 1.0, 1e-7, 0.0, math.inf]).double()
    more = Features(before, sd, torch.zeros(5).double(), 1.0)
    assert more.collapsed.tolist() == [False, False, True, True, True]
    assert parameter_drift(more, in_unit(after), site=site, step=1, lag=1) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite_are_left_out(site, in_unit, bad):
    before, after = moved(20, 3, 0.5)
    expected = parameter_drift(in_unit(before[1:]), in_unit(after[1:]), site=site, step=1, lag=1)
    after[0, 1] = bad
    assert parameter_drift(in_unit(before), in_unit(after), site=site, step=1, lag=1) == expected


@pytest.mark.parametrize("n", [0, 1])
def test_no_figure_below_two_samples(site, in_unit, n):
    assert parameter_drift(in_unit(torch.zeros(n, 2)), in_unit(torch.ones(n, 2)), site=site, step=1, lag=1) is None


def test_different_samples_are_refused(site, in_unit):
    text = "expected the same 5 samples twice; got 4 in the second; observe one batch twice"
    with pytest.raises(StatisticError, match=re.escape(text)):
        parameter_drift(in_unit(torch.zeros(5, 2)), in_unit(torch.zeros(4, 2)), site=site, step=1, lag=1)
    with pytest.raises(StatisticError, match="two observations of 2 features; got one of 3"):
        parameter_drift(in_unit(torch.zeros(5, 2)), in_unit(torch.zeros(5, 3)), site=site, step=1, lag=1)


def test_large_batches_cost_no_more_than_their_groups(site, in_unit):
    """16,384 samples of one feature: no matrix of samples by samples is made."""
    before, after = moved(16_384, 1, 0.05)
    reading = parameter_drift(in_unit(before), in_unit(after), site=site, step=1, lag=1)
    assert reading.n == 16_384
    mean = float((after - before).double().mean())
    assert reading.interval == pytest.approx((mean - 1.96 / 128, mean + 1.96 / 128), abs=0.3 * 1.96 / 128)
    assert reading.above_noise


def test_half_precision_network_on_hard_numbers(site, features_of):
    before = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).half().float() + 2000
    reading = parameter_drift(features_of(before), features_of(before + 1), site=site, step=1, lag=1)
    assert reading.value == pytest.approx(1.0, rel=0.2)
