from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.measures.resampling import (
    GROUPS,
    REPLICATES,
    contrasts,
    floor_of,
    group_sizes,
    group_sums,
    sign_group,
    signs,
)
from holdfast.measures.student import student_975


def test_floor_keeps_the_level_exactly():
    """Of 200 exchangeable values, ranked any way, exactly 10 lie above the floor that the 199 others give."""
    values = np.random.default_rng(0).normal(size=200)
    above = sum(values[k] > floor_of(np.delete(values, k)) for k in range(200))
    assert above == 10
    assert floor_of(np.arange(18.0)) == math.inf
    assert floor_of(np.arange(19.0)) == pytest.approx(18.0)


def test_a_tie_is_no_exceedance():
    observed = 0.1 + 0.2  # 0.30000000000000004
    assert not observed > floor_of(np.full(199, 0.3))


def test_contrasts_are_differences_of_means():
    rows = contrasts(3, 5, -1 / 3, 1 / 5, 0)
    assert rows.shape == (REPLICATES + 1, 8)
    assert rows[0].tolist() == [-1 / 3] * 3 + [1 / 5] * 5
    assert np.abs(rows.sum(1)).max() < 1e-12
    assert ((rows < 0).sum(1) == 3).all()
    assert len(np.unique(rows, axis=0)) > 50  # of the 56 arrangements


def test_signs_differ_by_seed_and_are_read_only():
    assert set(np.unique(signs(9, 0))) == {-1.0, 1.0}
    assert (signs(9, 0) != signs(9, 1)).any()
    with pytest.raises(ValueError, match="read-only"):
        signs(9, 0)[0, 0] = 3.0


@pytest.mark.parametrize("n", [1, 2, GROUPS, GROUPS + 1, 1000])
def test_groups(n):
    sizes = group_sizes(n)
    assert sizes.sum() == n
    assert len(sizes) == min(n, GROUPS)
    assert sizes.max() - sizes.min() <= 1
    rows = np.random.default_rng(0).normal(size=(n, 3))
    naive = [part.sum(0) for part in np.split(rows, np.cumsum(sizes)[:-1])]
    assert np.allclose(group_sums(rows, sizes), naive)


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 10, 15, 63, 200, 999, 1000, 1001, 50_000])
def test_students_t(dof):
    stats = pytest.importorskip("scipy.stats")
    assert student_975(dof) == pytest.approx(stats.t.ppf(0.975, dof), rel=2e-6)


@pytest.mark.parametrize("n", [8, 64])
def test_sign_group_is_one(n):
    rows = np.concatenate([np.ones((1, n)), sign_group(n, 0)])
    members = {row.tobytes() for row in rows}
    assert rows.shape == (64, n)
    assert {(a * b).tobytes() for a in rows for b in rows} == members
    assert (sign_group(n, 0) != sign_group(n, 1)).any()


@pytest.mark.parametrize("seed", range(5))
def test_sign_group_keeps_its_level_for_every_draw(seed):
    """|mean| of 12 symmetric values: at most 3 of 64 above, 4.7 %, with two standard errors of 4,000 readings."""
    values = np.random.default_rng(seed).standard_t(3, size=(4000, 12))
    flipped = np.abs(values @ sign_group(12, seed).T)
    above = np.mean([abs(row.sum()) > floor_of(others) for row, others in zip(values, flipped, strict=True)])
    assert above == pytest.approx(3 / 64, abs=0.0067)
