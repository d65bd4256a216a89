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
    and power falls. Features of unlike scale count by their scale. Time and memory grow with the square of n + m.
    Between two batches it is the difference of parameters and inputs together; a watch that is asked for it takes
    `mmd_shift`, between the same samples before and after a step, which is the parameters' alone.

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
import torch
from jaxtyping import Float64
from numpy import ndarray

from holdfast.core.errors import StatisticError
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.pairing import paired_rows
from holdfast.measures.permutation_test import TwoSample, beside
from holdfast.measures.resampling import REPLICATES, floor_of, signs
from holdfast.measures.sample import Sample, require_same_width, rows_of
from holdfast.stats.features import Features

QUANTITY = Quantity("mmd", "MMD²", Unit.KERNEL, "neither", bounds=(-2.0, 2.0), cost="one extra forward")

FEWEST, MOST = 8, 512
"""Samples of a pair of states: with fewer nothing rises above a floor; more make a kernel of too many pairs."""


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


@torch.no_grad()
def mmd_shift(
    reference: Features, current: Features, *, site: Site, step: int, lag: int, seed: int = 0
) -> Reading | None:
    """MMD² between the same samples under two states of the parameters, features in reference SD.

    A sample is not compared with itself across the states, which would count as likeness:
    mean_{i≠j} k(x_i, x_j) + k(y_i, y_j) − k(x_i, y_j) − k(x_j, y_i).

    Args:
        reference: the site under the parameters before, values `(samples, channels)`.
        current: the same samples, in the same order, under the parameters after.
        site: where.
        step: the step after which `current` was seen.
        lag: optimiser steps between the two.
        seed: of the private generator behind the floor.

    Returns:
        With the 95th percentile when before and after change places at random, sample by sample; of at most 512
        samples, evenly spaced. `None` when more than half of the features are collapsed, or with fewer than 8 samples.

    Raises:
        StatisticError: the two do not hold the same samples and features.
    """
    pair = paired_rows(reference, current)
    if pair is None or len(pair[0]) < FEWEST:
        return None
    x, y = (each[np.linspace(0, len(each) - 1, min(len(each), MOST)).round().astype(int)] for each in pair)
    kernel, n = _kernel(x, y, None)
    across = kernel[:n, n:]
    h = kernel[:n, :n] + kernel[n:, n:] - across - across.T
    np.fill_diagonal(h, 0.0)
    # An exchange of sample i turns the sign of all h_ij.
    flips = signs(n, seed)
    replicates = np.einsum("bi,bi->b", flips @ h, flips) / (n * (n - 1))
    value = float(h.sum()) / (n * (n - 1))
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, n, noise_floor=floor_of(replicates), lag=lag)
