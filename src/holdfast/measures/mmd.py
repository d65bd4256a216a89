"""MMD²: whether two samples of vectors come from one distribution, by a kernel.

    MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) − 2 mean_{ij} k(x_i, y_j)
    k(a, b) = exp(−|a − b|² / 2h²)        h: the median distance within the pooled pair

What it sees:
    Any difference between two distributions of vectors. The estimate is unbiased (a U-statistic): its mean is 0 where
    nothing moved, and single figures may be negative.

Why it matters:
    With whole feature vectors as samples it sees what no single feature shows, and `mmd_test` says how surprising it
    would be if nothing had moved.

When it is wrong:
    What counts as far is the bandwidth h: from the pooled pair it does not change when samples change places, so the
    test is exact, but figures of different h cannot be compared. With hundreds of features all distances are alike
    and power falls. Features of unlike scale count by their scale. Time and memory grow with the square of n + m. It
    is the difference of two batches: parameters and inputs together.

Example:
    >>> x, y = np.random.default_rng(0).normal(size=(2, 32, 4))
    >>> mmd_test(x, y).p_value > 0.05, mmd_test(x, y + 2).p_value    # the least that 199 permutations can give
    (True, 0.005)

References:
    Gretton et al. 2012, "A kernel two-sample test", lemma 6 (the U-statistic) and section 8 (the bandwidth).
    Phipson & Smyth 2010, "Permutation p-values should never be zero".
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from holdfast.core.errors import StatisticError
from holdfast.core.quantity import Quantity
from holdfast.core.units import Unit
from holdfast.measures.permutation_test import TwoSample, beside
from holdfast.measures.resampling import REPLICATES
from holdfast.measures.sample import Sample, require_same_width, rows_of

QUANTITY = Quantity("mmd", "MMD²", Unit.KERNEL, "neither", bounds=(-2.0, 2.0))


def mmd(reference: Sample, current: Sample, *, bandwidth: float | None = None) -> float:
    """MMD² with a Gaussian kernel, unbiased.

    Args:
        reference: rows `(samples, features)`.
        current: rows of the same features; the number of samples may differ.
        bandwidth: h; `None` takes the median distance of the pooled pair.

    Returns:
        Between −2 and 2; about 0 where nothing moved.

    Raises:
        StatisticError: fewer than two samples on a side, values that are not finite, or different features.
    """
    kernel, n = _kernel(reference, current, bandwidth)
    sides = np.zeros((1, len(kernel)))
    sides[:, :n] = 1.0
    return float(_estimates(kernel, sides)[0])


def mmd_test(
    reference: Sample,
    current: Sample,
    *,
    bandwidth: float | None = None,
    permutations: int = REPLICATES,
    seed: int = 0,
) -> TwoSample:
    """MMD² with its floor and p-value: whole samples of the pooled pair change places.

    The same as `permutation_test(mmd, …)`, with the kernel worked out once.

    Args:
        reference: rows `(samples, features)`.
        current: rows of the same features.
        bandwidth: h; `None` takes the median distance of the pooled pair.
        permutations: how many.
        seed: of the private generator.

    Returns:
        Value, floor, p-value (1 + k) / (1 + permutations), n.

    Raises:
        StatisticError: as `mmd`.
    """
    kernel, n = _kernel(reference, current, bandwidth)
    sides = np.zeros((permutations + 1, len(kernel)))
    sides[:, :n] = 1.0
    sides[1:] = np.random.default_rng(seed).permuted(sides[1:], axis=1)
    value, *replicates = _estimates(kernel, sides).tolist()
    return beside(value, np.array(replicates), min(n, len(kernel) - n))


def _kernel(
    reference: Sample, current: Sample, bandwidth: float | None
) -> tuple[Float64[ndarray, "pooled pooled"], int]:
    x, y = rows_of(reference), rows_of(current)
    require_same_width(x, y)
    if min(len(x), len(y)) < 2:
        raise StatisticError("at least 2 samples on each side", f"{len(x)} and {len(y)}", "observe a larger batch")
    pooled = np.concatenate([x, y])
    pooled -= pooled.mean(0)  # distances from inner products lose what a common offset adds
    inner = pooled @ pooled.T
    own = np.diagonal(inner)
    squares = np.maximum(own[:, None] + own[None] - 2 * inner, 0.0)
    np.fill_diagonal(squares, 0.0)
    if bandwidth is None:
        median = float(np.median(squares[np.triu_indices(len(squares), 1)]))
        # More than half of the pairs are equal (a dead layer): the mean distance still tells the others apart.
        square = median if median > 0 else float(squares.mean())
    else:
        square = bandwidth**2
    return np.exp(-squares / (2 * square)) if square > 0 else np.ones_like(squares), len(x)


def _estimates(
    kernel: Float64[ndarray, "pooled pooled"], sides: Float64[ndarray, "arrangements pooled"]
) -> Float64[ndarray, arrangements]:
    """MMD² of each arrangement: 1 where a sample counts as reference, 0 where as current."""
    n = sides[0].sum()
    m = len(kernel) - n
    row = kernel.sum(1)
    towards = sides @ kernel
    within = np.einsum("bi,bi->b", towards, sides)  # Σ over reference pairs, the diagonal's n ones too
    from_reference = sides @ row
    across = from_reference - within
    others = row.sum() - from_reference - across
    return (within - n) / (n * (n - 1)) + (others - m) / (m * (m - 1)) - 2 * across / (n * m)
