import numpy as np
import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.stats.covariance import Covariance


def test_of_samples_is_numpys():
    x = torch.randn(50, 4, dtype=torch.float64) * 3 + 100
    seen = Covariance.of(x)
    np.testing.assert_allclose(seen.matrix, np.cov(x.numpy().T, bias=True), rtol=1e-12)
    np.testing.assert_allclose(seen.mean, x.numpy().mean(0), rtol=1e-15)
    assert (seen.count, seen.dimensions) == (50, 4)


def test_samples_that_are_not_finite_are_left_out():
    x = torch.randn(6, 3)
    x[2, 1], x[4, 0] = float("nan"), float("inf")
    assert Covariance.of(x) == Covariance.of(x[[0, 1, 3, 5]])
    assert Covariance.of(x[[2, 4]]) == Covariance.empty(3)


def test_a_part_can_be_taken_away_again():
    x = torch.randn(30, 4) + 5
    whole, part, rest = Covariance.of(x), Covariance.of(x[:11]), Covariance.of(x[11:])
    left = whole - part
    assert left.count == 19
    np.testing.assert_allclose(left.mean, rest.mean, rtol=1e-12)
    np.testing.assert_allclose(left.m2, rest.m2, rtol=1e-10, atol=1e-10)
    assert whole - Covariance.empty() == whole
    assert whole - whole == Covariance.empty(4)


def test_other_shapes_are_refused():
    with pytest.raises(StatisticError, match=r"expected values of shape \(samples, features\); got shape \(2, 3, 4\)"):
        Covariance.of(torch.zeros(2, 3, 4))
    with pytest.raises(StatisticError, match="expected a covariance of 2 dimensions; got one of 3"):
        Covariance.of(torch.zeros(2, 2)) + Covariance.of(torch.zeros(2, 3))
