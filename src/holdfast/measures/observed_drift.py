"""Observed drift: how far two batches' features lie apart, whatever the cause.

    observed = √ mean_j (Δμ_j / σ_ref,j)²

What it sees:
    The difference between the feature means of two batches, in reference SD. Parameters may have moved between them
    and the inputs are others: this is what a monitor plots that compares one step's activations with the next's.

Why it matters:
    It is the figure most often shown as "internal covariate shift", and most of it is usually the batch: compare it
    with its floor, with sampling-drift, and with parameter-drift over the same lag before believing it.

When it is wrong:
    It is not debiased, so it is above zero even where nothing moved; it grows as √(2/batch size). The floor is the
    95th percentile when whole samples of the pooled pair change places: exact (at most 5 % of null readings lie
    above it) where the samples are exchangeable, so positions within a sample, heavy tails and sparsity do no harm;
    batches that are not drawn at random (sorted data, one class a batch) do. Below four samples a batch nothing
    rises above the floor. The comparison is made in *pooled* SD, because only that stays the same when samples
    change places; the floor is given in reference SD by the same factor as the value, so that value over floor is
    what the permutations say.

Example:
    >>> import torch
    >>> def features(values):
    ...     return Features(values, torch.ones(1).double(), values.mean(0).double(), 1.0)
    >>> low, high = torch.tensor([[-1.0], [1.0]] * 4), torch.tensor([[2.0], [4.0]] * 4)
    >>> reading = observed_drift(features(low), features(high), site=Site("fc", "input"), step=9, lag=3)
    >>> reading.value, reading.n, reading.above_noise
    (3.0, 8, True)

References:
    Phipson & Smyth 2010, "Permutation p-values should never be zero" (the observed arrangement counts as one).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float64
from numpy import ndarray

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.pairing import numbers, require_same_features, usable_features, usable_sd
from holdfast.measures.resampling import GROUPS, contrasts, floor_of
from holdfast.stats.features import Features

QUANTITY = Quantity("observed-drift", "observed drift", Unit.REFERENCE_SD, "neither", logarithmic=True)


@torch.no_grad()
def observed_drift(
    reference: Features, current: Features, *, site: Site, step: int, lag: int, seed: int = 0
) -> Reading | None:
    """How far the feature means of two batches lie apart, in reference SD.

    Args:
        reference: the earlier batch, values `(samples, channels)`.
        current: the later batch, other samples of the same site.
        site: where.
        step: the step at which `current` was seen.
        lag: optimiser steps between the two.
        seed: of the private generator behind the floor.

    Returns:
        Value and noise floor; n is the smaller batch. `None` when more than half of the reference's features are
        collapsed, or a batch has no finite sample.

    Raises:
        StatisticError: the two have different numbers of features.
    """
    require_same_features(reference, current)
    usable = usable_features(reference)
    if usable is None:
        return None
    pooled_sd, exchangeable = _pooled(reference, current)
    earlier, later = numbers(reference), numbers(current)
    # A feature that is not finite as a whole was left out by its SD; here go the single samples.
    kept = usable.where | exchangeable
    if not (math.isfinite(earlier.sum()) and math.isfinite(later.sum())):
        earlier = earlier[np.isfinite(earlier[:, kept]).all(1)]
        later = later[np.isfinite(later[:, kept]).all(1)]
    if not len(earlier) or not len(later):
        return None
    difference = later.mean(0) - earlier.mean(0)
    shift = difference[usable.where] / usable.sd
    squared = float(shift @ shift) / len(shift)
    floor = 0.0
    if exchangeable.any():
        scale = pooled_sd[exchangeable]
        if not exchangeable.all():
            earlier, later, difference = earlier[:, exchangeable], later[:, exchangeable], difference[exchangeable]
        here = float(np.mean((difference / scale) ** 2))
        floor = _permuted_floor(earlier / scale, later / scale, seed)
        floor *= squared / here if here > 0 else 1.0
    return Reading(
        QUANTITY.name,
        site,
        step,
        math.sqrt(squared),
        QUANTITY.unit,
        min(len(earlier), len(later)),
        noise_floor=math.sqrt(floor),
        lag=lag,
    )


def _pooled(reference: Features, current: Features) -> tuple[Float64[ndarray, channels], Bool[ndarray, channels]]:
    """SD of each feature over both batches together, and where that is a unit: neither knows which sample is whose."""
    n, m = reference.samples, current.samples
    share = m / (n + m) if n + m else math.nan
    first, second = reference.sd.cpu().numpy(), current.sd.cpu().numpy()
    gap = current.mean.cpu().numpy() - reference.mean.cpu().numpy()
    sd = np.sqrt((1 - share) * first**2 + share * second**2 + share * (1 - share) * gap**2)
    return sd, usable_sd(sd, math.sqrt((1 - share) * reference.rms**2 + share * current.rms**2))


def _permuted_floor(
    earlier: Float64[ndarray, "earlier_samples features"],
    later: Float64[ndarray, "later_samples features"],
    seed: int,
) -> float:
    """95th percentile of mean_j Δμ_j² when whole samples change places.

    Large batches are permuted in runs of k neighbours, all of one length; the samples left over stay where they are.
    Both are permutations of samples too, so the level stays exact.
    """
    n, m = len(earlier), len(later)
    k = max(1, min(-(-max(n, m) // GROUPS), min(n, m) // 16))
    runs = (n // k, m // k)
    weights = contrasts(*runs, -1 / n, 1 / m, seed)
    centre = earlier.mean(0)
    earlier, later = earlier - centre, later - centre
    pooled = np.concatenate([_runs(earlier, k), _runs(later, k)])
    left_over = n > runs[0] * k or m > runs[1] * k
    if pooled.shape[1] > len(pooled) and not left_over:
        # Σ_j (w·x_j)² = w X Xᵀ wᵀ
        squares = np.einsum("bi,bi->b", weights @ (pooled @ pooled.T), weights)
    else:
        shifts = weights @ pooled
        if left_over:
            shifts += later[runs[1] * k :].sum(0) / m - earlier[runs[0] * k :].sum(0) / n
        squares = np.einsum("bj,bj->b", shifts, shifts)
    return max(0.0, floor_of(squares[1:] / pooled.shape[1]))


def _runs(rows: Float64[ndarray, "samples features"], k: int) -> Float64[ndarray, "runs features"]:
    """Sums of k neighbours, without the last samples that fill no run."""
    if k == 1:
        return rows
    whole = len(rows) // k
    return rows[: whole * k].reshape(whole, k, rows.shape[1]).sum(1)
