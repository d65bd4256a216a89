"""Distances between moments, and between means and full covariances."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from holdfast.core.errors import StatisticError
from holdfast.measures.gaussian import Gaussian
from holdfast.measures.gaussian_kl import gaussian_kl
from holdfast.measures.gaussian_w2 import gaussian_w2
from holdfast.measures.log_scale_ratio import log_scale_ratio
from holdfast.measures.standardised_mean_shift import standardised_mean_shift
from holdfast.stats.moments import Moments

UNIT = Moments(100, 0.0, 100.0, 0.0, 300.0)
WIDE = Moments(100, 2.0, 900.0, 0.0, 24_300.0)
CONSTANT = Moments(100, 3.0, 0.0, 0.0, 0.0)
MEASURES = [standardised_mean_shift, log_scale_ratio, gaussian_w2, gaussian_kl]


def normal(d, seed):
    """A mean and a covariance of d features, well conditioned."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(d, 2 * d))
    return Gaussian(generator.normal(size=d), mixing @ mixing.T / (2 * d))


def test_nothing_moved():
    assert [each(UNIT, UNIT) for each in MEASURES] == [0.0] * 4
    some = normal(7, 0)
    assert gaussian_w2(some, some) == pytest.approx(0.0, abs=1e-13)
    assert gaussian_kl(some, some) == pytest.approx(0.0, abs=1e-13)


def test_only_mean_shift_and_kl_depend_on_the_order():
    assert standardised_mean_shift(WIDE, UNIT) == pytest.approx(2 / 3)
    assert log_scale_ratio(WIDE, UNIT) == log_scale_ratio(UNIT, WIDE)
    assert gaussian_w2(WIDE, UNIT) == gaussian_w2(UNIT, WIDE)
    assert gaussian_kl(UNIT, WIDE) != gaussian_kl(WIDE, UNIT)
    assert gaussian_kl(UNIT, WIDE, symmetric=True) == gaussian_kl(WIDE, UNIT, symmetric=True)


def test_values_are_vectors_of_length_one():
    a, b = (Gaussian(np.array([each.mean]), np.array([[each.variance]])) for each in (UNIT, WIDE))
    assert gaussian_w2(a, b) == pytest.approx(gaussian_w2(UNIT, WIDE), rel=1e-14)
    assert gaussian_kl(a, b) == pytest.approx(gaussian_kl(UNIT, WIDE), rel=1e-14)
    assert gaussian_kl(UNIT, b) == pytest.approx(gaussian_kl(UNIT, WIDE), rel=1e-14)


@pytest.mark.parametrize("ratio", [1 + 1e-9, 1 - 1e-6, 1.09, 1.11, 0.5])
def test_kl_of_a_small_change_of_scale(ratio):
    """(r − 1 − ln r)/2 in 50 digits."""
    from decimal import Decimal, localcontext

    with localcontext(prec=50):
        exact = float((Decimal(ratio) - 1 - Decimal(ratio).ln()) / 2)
    assert gaussian_kl(Moments(1, 0.0, ratio, 0.0, 0.0), Moments(1, 0.0, 1.0, 0.0, 0.0)) == pytest.approx(
        exact, rel=1e-6, abs=0
    )


def test_small_displacements_of_vectors_keep_their_digits():
    """The trace of near-equal covariances would leave √ε; here Σ₂ = (1 + 1e-7)² Σ₁, so that W2 = 1e-7 √tr Σ₁."""
    some = normal(9, 1)
    moved = Gaussian(some.mean, some.covariance * (1 + 1e-7) ** 2)
    assert gaussian_w2(some, moved) == pytest.approx(1e-7 * math.sqrt(np.trace(some.covariance)), rel=1e-5)


def test_a_gaussian_of_rows():
    rows = np.random.default_rng(0).normal(size=(50, 3))
    some = Gaussian.of(rows)
    assert np.allclose(some.mean, rows.mean(0))
    assert np.allclose(some.covariance, np.cov(rows.T, bias=True))


def test_w2_needs_no_inverse_and_kl_says_so():
    flat = Gaussian(np.zeros(3), np.diag([1.0, 4.0, 0.0]))
    assert gaussian_w2(flat, Gaussian(np.zeros(3), np.eye(3))) == pytest.approx(math.sqrt(2))
    text = (
        "expected a covariance of rank 3; got one of rank 2; give more samples than features, or use gaussian_w2, "
        "which needs no inverse"
    )
    for pair in ((flat, normal(3, 0)), (normal(3, 0), flat)):
        with pytest.raises(StatisticError, match=re.escape(text)):
            gaussian_kl(*pair)


def test_other_features_are_refused():
    with pytest.raises(StatisticError, match="two distributions of 2 features; got one of 3"):
        gaussian_w2(normal(2, 0), normal(3, 0))
    with pytest.raises(StatisticError, match=re.escape("type: Gaussian.of(rows)")):
        gaussian_w2(Gaussian(np.zeros(2), np.eye(3)), normal(2, 0))


def test_a_constant_reference_has_no_unit():
    text = "expected moments of values that vary; got 100 values that are all 3; use gaussian_w2, which needs no spread"
    for measure in (standardised_mean_shift, log_scale_ratio, gaussian_kl):
        with pytest.raises(StatisticError, match=re.escape(text)):
            measure(CONSTANT, UNIT)
    assert gaussian_w2(CONSTANT, UNIT) == pytest.approx(math.hypot(3, 1))


@pytest.mark.parametrize("measure", MEASURES)
def test_no_data(measure):
    text = "expected moments of some finite values; got moments of none; observe a batch first"
    with pytest.raises(StatisticError, match=re.escape(text)):
        measure(UNIT, Moments.empty())
    with pytest.raises(StatisticError, match=re.escape(text)):
        measure(Moments.empty(), UNIT)
