"""Floors of any distance between two samples: whole samples that change places, and halves of one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from torch import Tensor

from holdfast.core.errors import StatisticError
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.measures.resampling import REPLICATES, floor_of
from holdfast.measures.sample import Sample

Distance = Callable[[Any, Any], float]


class TwoSample(NamedTuple):
    """A distance beside what it is when nothing moved.

    Args:
        value: of the two samples.
        noise_floor: 95th percentile of the permuted ones: exceeded with probability at most 5 % where nothing moved.
        p_value: (1 + permutations that reach the value) / (1 + permutations); never 0.
        n: samples of the smaller side.
    """

    value: float
    noise_floor: float
    p_value: float
    n: int

    def reading(self, quantity: Quantity, *, site: Site, step: int, lag: int | None = None) -> Reading:
        """As a reading, for a run, a report or `within_noise`.

        Args:
            quantity: of the distance, such as `hf.measures.QUANTITIES["wasserstein1"]`; its unit must be the value's.
            site: where the samples come from.
            step: the step of the later one.
            lag: optimiser steps between the two.
        """
        return Reading(quantity.name, site, step, self.value, quantity.unit, self.n, self.noise_floor, lag=lag)


def permutation_test(
    distance: Distance, reference: Sample, current: Sample, *, permutations: int = REPLICATES, seed: int = 0
) -> TwoSample:
    """A distance with its floor and p-value: whole samples of the pooled pair change places.

    Exact where samples are exchangeable, whatever their distribution; what belongs to one sample (its positions, its
    features) stays together, so that correlated positions do not count as samples.

    Args:
        distance: of two samples, such as `hf.measures.wasserstein1`.
        reference: samples along the first axis.
        current: the same features; the number of samples may differ.
        permutations: how many; 199 make 5 % of all arrangements a whole number.
        seed: of the private generator.

    Returns:
        Value, floor, p-value, n.

    Raises:
        StatisticError: fewer than two samples on a side, or samples of different shapes.

    Example:
        >>> from holdfast.measures.wasserstein1 import wasserstein1
        >>> maps = np.random.default_rng(0).normal(size=(2, 16, 1)) + np.zeros((2, 16, 9))  # 9 equal positions
        >>> whole = permutation_test(lambda a, b: wasserstein1(a.ravel(), b.ravel()), *maps)
        >>> whole.p_value > 0.05                              # by position it would be 16 · 9 samples
        True

    References:
        Phipson & Smyth 2010, "Permutation p-values should never be zero".
    """
    pooled, n = _pooled(reference, current)
    generator = np.random.default_rng(seed)
    value = float(distance(reference, current))
    replicates = np.empty(permutations)
    for k in range(permutations):
        order = generator.permutation(len(pooled))
        replicates[k] = distance(pooled[order[:n]], pooled[order[n:]])
    return beside(value, replicates, min(n, len(pooled) - n))


def split_half_floor(
    distance: Distance, sample: Sample, *, rate: float, draws: int = REPLICATES, seed: int = 0
) -> float:
    """The floor of a distance between two batches, from one batch alone: how far random halves of it lie apart.

    Halves of a batch of n differ as independent batches of n/2 do, tails, correlation and all. A distance that falls
    as n^−rate is 2^rate times smaller between whole batches.  What moved between two batches cannot enter, as it does
    a little in the pooled pair of `permutation_test`; in exchange the level is kept for large n only.

    Args:
        distance: of two samples.
        sample: samples along the first axis.
        rate: ½ for distances in the unit of the values (W1, sliced W1, W2 of Gaussians, KS), 1 for those that are
            squares near 0 (KL, Jensen–Shannon, MMD²).
        draws: how many times the batch is cut in two.
        seed: of the private generator.

    Returns:
        The 95th percentile, for two batches as large as this one.

    Raises:
        StatisticError: fewer than four samples.

    Example:
        >>> from holdfast.measures.wasserstein1 import wasserstein1
        >>> batch = np.random.default_rng(0).normal(size=256)
        >>> round(split_half_floor(wasserstein1, batch, rate=0.5), 1)    # the mean is 1.82 / √256 = 0.11
        0.2
    """
    count = len(sample)
    if count < 4:
        raise StatisticError("at least 4 samples to cut in two", str(count), "observe a larger batch")
    generator = np.random.default_rng(seed)
    half = count // 2
    replicates = np.empty(draws)
    for k in range(draws):
        order = generator.permutation(count)
        replicates[k] = distance(sample[order[:half]], sample[order[half : 2 * half]])
    return floor_of(replicates) * (half / count) ** rate


def beside(value: float, replicates: Float64[ndarray, permutations], n: int) -> TwoSample:
    """From the distance itself and those of permuted samples.

    Args:
        value: as observed.
        replicates: one a permutation.
        n: samples of the smaller side.
    """
    # Equal arrangements, summed in another order, differ in the last digits.
    reached = int(np.count_nonzero(replicates >= value - 1e-9 * abs(value)))
    return TwoSample(value, floor_of(replicates), (1 + reached) / (1 + len(replicates)), n)


def _pooled(reference: Sample, current: Sample) -> tuple[Any, int]:
    if reference.shape[1:] != current.shape[1:]:
        raise StatisticError(
            f"two samples of shape {tuple(reference.shape[1:])} each",
            f"{tuple(current.shape[1:])} in the second",
            "compare samples of one site only",
        )
    for each in (reference, current):
        if len(each) < 2:
            raise StatisticError("at least 2 samples on each side", str(len(each)), "observe a larger batch")
    if isinstance(reference, Tensor) and isinstance(current, Tensor):
        import torch

        return torch.cat([reference.detach(), current.detach()]), len(reference)
    return np.concatenate([np.asarray(reference), np.asarray(current)]), len(reference)
