"""Rank of covariances that are known: equal, falling as a power, of rank k. Expected figures are closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from holdfast.core.site import Site
from holdfast.measures.effective_rank import effective_rank
from holdfast.measures.participation_ratio import participation_ratio
from holdfast.measures.spectrum import parts_of, projected
from holdfast.measures.variance_rank import variance_rank
from holdfast.stats.covariance import Covariance

WHERE = {"site": Site("fc", "input"), "step": 1}


def rotated(variances, samples, seed=0):
    """Normal samples whose covariance has these eigenvalues and no axis of its own."""
    generator = np.random.default_rng(seed)
    d = len(variances)
    basis = np.linalg.qr(generator.standard_normal((d, d)))[0]
    x = generator.standard_normal((samples, d)) * np.sqrt(variances) @ basis + 3.0
    return torch.from_numpy(x)


def exactly(variances):
    """A covariance that is the given one, of as many samples as one likes, in one part."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((len(variances),) * 2))[0]
    return [Covariance(10_000, np.zeros(len(variances)), 10_000 * (basis * variances) @ basis.T)]


SPECTRA = {
    "equal": np.ones(40),
    "falling as 1/k": 1 / np.arange(1, 41),
    "of rank 5": np.r_[np.ones(5), np.zeros(35)],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_of_a_covariance_that_is_exactly_known(name):
    p = SPECTRA[name] / SPECTRA[name].sum()
    entropy = -sum(share * math.log(share) for share in p if share)
    window = exactly(SPECTRA[name])
    assert effective_rank(window, **WHERE).value == pytest.approx(math.exp(entropy), rel=1e-9)
    assert participation_ratio(window, **WHERE).value == pytest.approx(1 / (p**2).sum(), rel=1e-9)
    needed = {"equal": 40, "of rank 5": 5, "falling as 1/k": next(k for k in range(41) if p[:k].sum() >= 0.99)}
    assert variance_rank(window, **WHERE).value == needed[name] / 40


@pytest.mark.parametrize("name", SPECTRA)
def test_from_samples_to_one_percent(name):
    """400 samples, 10 a dimension: mean over 20 draws within 1 % (standard error below 0.4 %)."""
    variances = SPECTRA[name]
    p = variances / variances.sum()
    rank = math.exp(-sum(share * math.log(share) for share in p if share))
    found = [parts_of(rotated(variances, 400, seed)) for seed in range(20)]
    assert np.mean([effective_rank(each, **WHERE).value for each in found]) == pytest.approx(rank, rel=0.01)
    ratios = [participation_ratio(each, **WHERE).value for each in found]
    assert np.mean(ratios) == pytest.approx(1 / (p**2).sum(), rel=0.01)


def test_bias_of_the_plain_figures_is_the_stated_one():
    """One part has no jackknife: exp(−d/2n) and 1/(1 + d/n) of the truth, within 1 %; of 64 directions one is lost."""
    found = [[Covariance.of(rotated(np.ones(40), 400, seed))] for seed in range(20)]
    plain = [effective_rank(each, **WHERE) for each in found]
    assert all(reading.interval is None for reading in plain)
    assert np.mean([reading.value for reading in plain]) == pytest.approx(40 * math.exp(-0.05), rel=0.01)
    ratios = [participation_ratio(each, **WHERE).value for each in found]
    assert np.mean(ratios) == pytest.approx(40 / 1.1, rel=0.01)
    many = [variance_rank([Covariance.of(rotated(np.ones(64), 640, seed))], **WHERE).value for seed in range(20)]
    assert np.mean(many) == pytest.approx(63 / 64, abs=0.25 / 64)


@pytest.mark.parametrize("name", ["equal", "falling as 1/k"])
def test_intervals_hold_the_truth(name, shapes_unchecked):
    """95 % intervals from 12 parts: at least 90 % of 200 draws, of a spectrum whose rank is inside the bounds."""
    variances = SPECTRA[name][:10] + (name == "equal") * np.linspace(0, 1, 10)
    p = variances / variances.sum()
    truths = math.exp(-(p * np.log(p)).sum()), 1 / (p**2).sum()
    hits = np.zeros(2)
    for seed in range(200):
        parts = parts_of(rotated(variances, 240, seed))
        for k, measure in enumerate((effective_rank, participation_ratio)):
            low, high = measure(parts, **WHERE).interval
            hits[k] += low <= truths[k] <= high
    assert (hits >= 180).all(), hits


def test_a_wide_site_is_seen_through_64_directions():
    """Equal variances stay equal (within 2 %), rank 5 stays at most 5; scale and shift change nothing."""
    x = torch.randn(2000, 300, generator=torch.Generator().manual_seed(0))
    assert projected(x).shape == (2000, 64)
    assert effective_rank(parts_of(x), **WHERE).value == pytest.approx(64, rel=0.02)
    few = x[:, :5] @ torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    reading = effective_rank(parts_of(few), **WHERE)
    assert 3 < reading.value <= 5
    assert variance_rank(parts_of(few), **WHERE).value <= 5 / 64
    again = effective_rank(parts_of(1e3 * few + 7), **WHERE)
    assert again.value == pytest.approx(reading.value, rel=1e-3)
