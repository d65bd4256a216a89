from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.measures.kolmogorov_smirnov import kolmogorov_smirnov, kolmogorov_smirnov_error
from holdfast.stats.observation import observe


def sketch_of(values):
    return observe(torch.as_tensor(values)[:, None, None], exponent=-2).summary.sketch


@pytest.mark.parametrize(("n", "m"), [(1, 1), (40, 40), (40, 7), (3, 200)])
@pytest.mark.parametrize("shift", [0.0, 0.8, -9.0])
def test_of_samples_is_scipys(n, m, shift):
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(n + m)
    x, y = generator.normal(size=n).round(1), (shift + generator.normal(size=m)).round(1)  # with ties
    assert kolmogorov_smirnov(x, y) == pytest.approx(stats.ks_2samp(x, y).statistic, rel=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_sketches_fall_short_by_no_more_than_is_said(seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=generator.integers(2, 400)) * np.exp(generator.normal())
    y = generator.exponential(size=generator.integers(2, 400)) - generator.normal()
    a, b = sketch_of(x), sketch_of(y)
    exact, found = kolmogorov_smirnov(x, y), kolmogorov_smirnov(a, b)
    assert found <= exact + 1e-12
    assert exact <= found + kolmogorov_smirnov_error(a, b) + 1e-12
    assert kolmogorov_smirnov_error(a, b) < 1


def test_values_of_one_bin_cannot_be_told_apart():
    a, b = sketch_of(np.full(9, 0.01)), sketch_of(np.full(9, 0.02))
    assert (kolmogorov_smirnov(a, b), kolmogorov_smirnov_error(a, b)) == (0.0, 1.0)


def test_bad_input():
    with pytest.raises(StatisticError, match="at least one sample"):
        kolmogorov_smirnov(np.zeros(0), np.zeros(3))
    with pytest.raises(StatisticError, match="compare two samples, or two sketches"):
        kolmogorov_smirnov(np.zeros(3), sketch_of(np.zeros(3)))
