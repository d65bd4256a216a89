"""Sign flips, permutations and groups of samples: the random parts of floors and intervals, private and cached.

The same signs and permutations serve every site and every step with as many samples: each test is exact on its own,
and drawing anew would cost more than the test.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

REPLICATES = 199
"""With the observed arrangement these are 200, of which 5 % is the whole number 10."""

GROUPS = 64
"""More samples than this are added up in groups first: 63 degrees of freedom widen a 95 % interval by 2 % only, and
the cost no longer grows with the square of the batch."""


@lru_cache(maxsize=64)
def signs(n: int, seed: int) -> Float64[ndarray, "replicates n"]:
    """Random signs, one row a replicate.

    Args:
        n: how many things to flip.
        seed: of the private generator.

    Returns:
        +1 or −1, read only.
    """
    rows = np.random.default_rng((seed, n)).choice(np.array([-1.0, 1.0]), size=(REPLICATES, n))
    rows.flags.writeable = False
    return rows


@lru_cache(maxsize=64)
def sign_group(n: int, seed: int) -> Float64[ndarray, "flips n"]:
    """63 sign flips that with the identity form a group: products of six random ones.

    For few flips that serve many data sets: a test on a group keeps its level for every group, where independent flips
    keep it in the mean over their draws only (among 39, the level of a draw is 5 % ± 1 %).

    Args:
        n: how many things to flip, at least 7.
        seed: of the private generator.

    Returns:
        +1 or −1, without the row of ones, read only; no row is another's opposite, which would make ties.

    References:
        Hemerik & Goeman 2018, "Exact testing with random permutations", theorem 1.
    """
    generator = np.random.default_rng((seed, n))
    rows = np.ones((1, n))
    while len(rows) < 64:
        row = generator.choice(np.array([-1.0, 1.0]), size=n)
        # Products of this row with members differ from members, and from their opposites, where the row itself does.
        if not (np.abs(rows @ row) == n).any():
            rows = np.concatenate([rows, rows * row])
    rows = rows[1:]
    rows.flags.writeable = False
    return rows


@lru_cache(maxsize=16)
def contrasts(
    reference: int, current: int, reference_weight: float, current_weight: float, seed: int
) -> Float64[ndarray, "replicates_and_one pooled"]:
    """Weights that give the difference of two means, the observed arrangement first, then permuted ones.

    Args:
        reference: how many things (samples or runs of samples) are in the reference; they come first.
        current: how many in the current.
        reference_weight: of each that an arrangement counts as reference, such as −1/n.
        current_weight: of each that it counts as current, such as 1/m.
        seed: of the private generator.

    Returns:
        One row an arrangement, read only.
    """
    observed = np.repeat([reference_weight, current_weight], [reference, current])
    generator = np.random.default_rng((seed, reference, current))
    rows = np.concatenate([observed[None], generator.permuted(np.tile(observed, (REPLICATES, 1)), axis=1)])
    rows.flags.writeable = False
    return rows


def floor_of(replicates: Float64[ndarray, replicates]) -> float:
    """The 95th percentile of replicates, chosen so that the level is kept exactly.

    The ⌈0.95 (B + 1)⌉-th smallest of B: where the observed value and the B replicates are exchangeable, the
    observed one lies above it with probability at most 5 %. Equal arrangements summed in another order differ in
    the last digits; the floor is raised by 1e-9 of itself so that a tie is not an exceedance.

    Args:
        replicates: the measure (or its square) in each replicate.

    Returns:
        The floor, infinite where there are fewer than 19 replicates.

    Example:
        >>> round(floor_of(np.arange(1.0, 200.0)), 3)
        190.0
    """
    place = math.ceil(0.95 * (len(replicates) + 1) - 1e-9)
    if place > len(replicates):
        return math.inf
    value = float(np.partition(replicates, place - 1)[place - 1])
    return value + 1e-9 * abs(value)


def group_sizes(n: int, most: int = GROUPS) -> Int64[ndarray, groups]:
    """How many samples each group holds: one each up to `most` samples, then near-equal runs of neighbours.

    Args:
        n: how many samples.
        most: how many groups at most.

    Returns:
        At most `most` sizes, their sum `n`.

    Example:
        >>> group_sizes(3).tolist(), sorted(set(group_sizes(200).tolist())), len(group_sizes(200))
        ([1, 1, 1], [3, 4], 64)
    """
    groups = min(n, most)
    return np.diff(np.arange(groups + 1) * n // max(groups, 1)).astype(np.int64)


def group_sums(
    rows: Float64[ndarray, "samples features"], sizes: Int64[ndarray, groups]
) -> Float64[ndarray, "groups features"]:
    """Sums of neighbouring rows.

    Args:
        rows: one a sample.
        sizes: rows in each group, none of them 0.

    Returns:
        One row a group; `rows` itself where every group is one row.
    """
    if len(sizes) == len(rows):
        return rows
    if len(sizes) and not len(rows) % len(sizes):  # all alike: a third of the time
        return rows.reshape(len(sizes), -1, rows.shape[1]).sum(1)
    return np.add.reduceat(rows, np.cumsum(sizes) - sizes, axis=0)
