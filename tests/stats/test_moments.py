import math

import numpy as np
import pytest
from scipy import stats

from holdfast.stats.moments import Moments


def moments_of(x):
    d = x - x.mean()
    return Moments(x.size, float(x.mean()), *(float((d**k).sum()) for k in (2, 3, 4)))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_derived_figures_are_the_textbook_s(scale):
    x = np.random.default_rng(0).gamma(2.0, size=1000) * scale
    moments = moments_of(x)
    assert moments.variance == pytest.approx(x.var())
    assert moments.sd == pytest.approx(x.std())
    assert moments.rms == pytest.approx(np.sqrt(np.mean((x / scale) ** 2)) * scale)
    assert moments.skewness == pytest.approx(stats.skew(x / scale))
    assert moments.kurtosis == pytest.approx(stats.kurtosis(x / scale, fisher=False))


def test_a_normal_s_kurtosis_is_three():
    x = np.random.default_rng(1).normal(size=200_000)
    assert moments_of(x).kurtosis == pytest.approx(3, abs=0.05)  # its SD is √(24 / n) = 0.011


def test_constant_data_have_no_shape():
    moments = Moments(5, 2.0, 0.0, 0.0, 0.0)
    assert (moments.sd, moments.rms) == (0.0, 2.0)
    assert math.isnan(moments.skewness)
    assert math.isnan(moments.kurtosis)


def test_no_data_have_no_figures():
    empty = Moments.empty()
    assert all(math.isnan(each) for each in (empty.variance, empty.sd, empty.rms, empty.skewness, empty.kurtosis))


def test_merging_far_apart_data_keeps_the_digits():
    a, b = np.random.default_rng(2).normal(size=(2, 500))
    a, b = a + 2000, b * 0.01 - 2000
    merged, whole = moments_of(a) + moments_of(b), moments_of(np.concatenate([a, b]))
    np.testing.assert_allclose(merged.pack(), whole.pack(), rtol=1e-9)
