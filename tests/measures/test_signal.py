"""Collapsed features, saturated fraction, dead units: one test file for three one-line definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast.measures.collapsed_features import collapsed_features
from holdfast.measures.dead_units import dead_units
from holdfast.measures.pairing import usable_sd
from holdfast.measures.saturated_fraction import saturated_fraction
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.features import Features
from holdfast.stats.observation import observe
from holdfast.stats.summary import Summary


def test_collapsed_features(site, features_of):
    values = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    values[:, 1] = 3.0
    reading = collapsed_features(features_of(values), site=site, step=2)
    assert (reading.value, reading.n, reading.unit) == (0.25, 32, "fraction")
    assert collapsed_features(features_of(torch.zeros(0, 4)), site=site, step=2) is None
    assert collapsed_features(features_of(torch.zeros(4, 0)), site=site, step=2) is None


@pytest.mark.parametrize(("samples", "positions"), [(1, 1), (7, 1), (1, 7), (3, 2)])
def test_too_few_values_do_not_tell_whether_features_vary(site, samples, positions):
    few = observe(torch.ones(samples, 4, positions)).features
    assert collapsed_features(few, site=site, step=2) is None


@pytest.mark.parametrize(("samples", "positions"), [(8, 1), (1, 8), (2, 4)])
def test_eight_values_of_a_feature_tell_that_it_does_not_vary(site, samples, positions):
    enough = observe(torch.ones(samples, 4, positions)).features
    assert collapsed_features(enough, site=site, step=2).value == 1.0


@pytest.mark.parametrize("rms", [0.0, 1.0, 1e6, float("nan"), float("inf")])
def test_two_definitions_of_collapsed_agree(rms):
    sd = torch.tensor([0.0, 1e-7, 1e-6, 0.5, 1.0, float("nan"), float("inf")]).double()
    features = Features(torch.zeros(1, 7), sd, torch.zeros(7).double(), rms)
    assert (~usable_sd(sd.numpy(), rms)).tolist() == features.collapsed.tolist()


def test_saturated_fraction_of_a_sigmoid(site):
    z = torch.tensor([[-5.0, 0.0, 4.3, 4.4], [1.0, 2.0, float("nan"), 9.0]]).unsqueeze(2)
    reading = saturated_fraction(observe(z, threshold=4.357).summary, site=site, step=2, samples=2)
    assert reading.value == pytest.approx(3 / 7)
    assert reading.n == 2
    low, high = reading.interval
    assert 0 <= low < reading.value < high <= 1
    assert saturated_fraction(observe(z, threshold=4.357).summary, site=site, step=2).n == 7
    assert saturated_fraction(Summary.empty(), site=site, step=2) is None


def test_wilson_interval_of_the_book(site):
    """Altman et al. 2000, table 6.1 style: 81 of 263 is 0.308, 95 % interval 0.255 to 0.366."""
    z = torch.zeros(263, 1, 1)
    z[:81] = 9.0
    reading = saturated_fraction(observe(z, threshold=4.357).summary, site=site, step=2, samples=263)
    assert reading.interval == pytest.approx((0.255, 0.366), abs=6e-4)


@pytest.mark.parametrize("whole_samples", [True, False])
def test_saturation_interval_covers_whatever_the_dependence_within_a_sample(site, whole_samples):
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(500):
        share = torch.rand(30, 1, 1, generator=generator) < 0.2
        z = share.expand(30, 10, 1) if whole_samples else torch.rand(30, 10, 1, generator=generator) < 0.2
        reading = saturated_fraction(observe(9.0 * z, threshold=4.357).summary, site=site, step=1, samples=30)
        hits += reading.interval[0] <= 0.2 <= reading.interval[1]
    assert hits >= 0.92 * 500


def test_dead_units(site):
    x = torch.randn(16, 4, 9, generator=torch.Generator().manual_seed(0)).relu()
    x[:, 2] = 0.0
    reading = dead_units(observe(x).channels, site=site, step=2)
    assert (reading.value, reading.n) == (0.25, 16 * 9)
    assert dead_units(observe(x).channels, site=site, step=2, samples=16).n == 16
    # merged with a window in which the unit woke up once, it is not dead
    y = torch.zeros(16, 4, 9)
    y[0, 2, 0] = 0.1
    assert dead_units(observe(x).channels + observe(y).channels, site=site, step=2).value == 0.0


def test_dead_units_without_data(site):
    assert dead_units(ChannelMoments.empty(3), site=site, step=2) is None
    assert dead_units(ChannelMoments.empty(), site=site, step=2) is None
    counts = np.array([0.0, 4.0])
    one_seen = ChannelMoments(counts, np.zeros(2), np.zeros(2), np.array([0.0, 4.0]))
    assert dead_units(one_seen, site=site, step=2).value == 1.0
