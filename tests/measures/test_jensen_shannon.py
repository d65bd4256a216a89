from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.core.errors import StatisticError
from holdfast.measures.jensen_shannon import jensen_shannon
from holdfast.stats.sketch import Sketch


def sketch(counts):
    return Sketch(0, tuple(int(each) for each in counts))


@pytest.mark.parametrize("seed", range(10))
def test_is_scipys(seed):
    distance = pytest.importorskip("scipy.spatial.distance")
    p, q = np.random.default_rng(seed).poisson([[0.7], [3.0]], size=(2, 64))
    assert jensen_shannon(sketch(p), sketch(q)) == pytest.approx(distance.jensenshannon(p, q) ** 2, rel=1e-9)


def test_bounds():
    left, right = np.eye(64, dtype=int)[[3, 50]]
    assert jensen_shannon(sketch(left), sketch(right)) == pytest.approx(math.log(2), rel=1e-15)
    assert jensen_shannon(sketch(left), sketch(right)) <= math.log(2)
    assert jensen_shannon(sketch(3 * left + right), sketch(6 * left + 2 * right)) == 0.0


def test_small_differences_keep_their_digits():
    """p = ½ ± ε: the divergence is ε²/2·(1 + O(ε²)); entropies subtracted from each other would leave noise."""
    a, b = (np.zeros(64, int) for _ in range(2))
    a[3] = a[4] = 10**9
    b[3], b[4] = 10**9 + 10**3, 10**9 - 10**3
    assert jensen_shannon(sketch(a), sketch(b)) == pytest.approx((0.5e-6) ** 2 / 2, rel=1e-3, abs=0)


def test_no_data_and_other_scales():
    some = sketch(np.ones(64))
    with pytest.raises(StatisticError, match="a sketch of none"):
        jensen_shannon(some, Sketch.empty())
    with pytest.raises(StatisticError, match="of scale"):
        jensen_shannon(some, Sketch(1, some.bins))
