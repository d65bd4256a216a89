"""Sliced Wasserstein: W1 of vectors, as the mean over random directions.

    SW = mean_θ W1(θ·x, θ·y)        θ uniform on the unit sphere, 64 of them, from a private seed

What it sees:
    How far whole feature vectors moved, joint shape included: a change of correlation that leaves every feature's own
    distribution alone is seen. A shift by δ in d dimensions is |δ| Γ(d/2) / (√π Γ((d+1)/2)), about 0.8 |δ| / √d.

Why it matters:
    Layers see vectors. W1 feature by feature misses what happens between features; W1 of vectors costs n³.

When it is wrong:
    It is a mean over 64 directions: its relative error from their choice is about 0.1 for a shift (the same seed gives
    the same directions, so that figures of one site can be compared). It shrinks as 1/√d: do not compare sites of
    different width by it. Features of unlike scale count by their scale: divide by the reference SD first. Where
    nothing moved it is not 0: give a floor with `permutation_test`. Between two batches it is the difference of
    parameters and inputs together; a watch that is asked for it takes `sliced_wasserstein_shift`, between the same
    samples before and after a step, in reference SD, which is the parameters' alone.

Example:
    >>> cloud = np.random.default_rng(0).normal(size=(128, 2))
    >>> shift = np.array([3.0, 4.0])                          # |δ| = 5, and the mean of |cos| in the plane is 2/π
    >>> abs(sliced_wasserstein(cloud, cloud + shift) - 5 * 2 / np.pi) < 0.5
    True

References:
    Rabin, Peyré, Delon & Bernot 2011, "Wasserstein barycenter and its application to texture mixing".
    Bonneel et al. 2015, "Sliced and Radon Wasserstein barycenters of measures".
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.pairing import paired_rows
from holdfast.measures.resampling import floor_of, sign_group
from holdfast.measures.sample import Sample, require_same_width, rows_of
from holdfast.measures.wasserstein1 import sorted_distance
from holdfast.stats.features import Features

PROJECTIONS = 64

QUANTITY = Quantity(
    "sliced-wasserstein",
    "sliced Wasserstein",
    Unit.REFERENCE_SD,
    "higher is worse",
    cost="one extra forward",
    logarithmic=True,
)

FEWEST = 8


def sliced_wasserstein(reference: Sample, current: Sample, *, projections: int = PROJECTIONS, seed: int = 0) -> float:
    """Mean W1 over random directions.

    Args:
        reference: rows `(samples, features)`.
        current: rows of the same features; the number of samples may differ.
        projections: how many directions.
        seed: of the private generator that draws them.

    Returns:
        In the values' own unit.

    Raises:
        StatisticError: no data, values that are not finite, or different features.
    """
    x, y = rows_of(reference), rows_of(current)
    require_same_width(x, y)
    along = directions(x.shape[1], projections, seed)
    first, second = (np.sort(each @ along.T, axis=0).T for each in (x, y))
    return float(np.mean([sorted_distance(a, b) for a, b in zip(first, second, strict=True)]))


def directions(features: int, count: int, seed: int) -> Float64[ndarray, "count features"]:
    """Unit vectors, uniform on the sphere.

    Args:
        features: dimensions.
        count: how many.
        seed: of the private generator.

    Returns:
        One row a direction.
    """
    rows = np.random.default_rng((seed, features)).normal(size=(count, features))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@torch.no_grad()
def sliced_wasserstein_shift(
    reference: Features, current: Features, *, site: Site, step: int, lag: int, seed: int = 0
) -> Reading | None:
    """Sliced W1 between the same samples under two states of the parameters, in reference SD.

    Args:
        reference: the site under the parameters before, values `(samples, channels)`.
        current: the same samples, in the same order, under the parameters after.
        site: where.
        step: the step after which `current` was seen.
        lag: optimiser steps between the two.
        seed: of the private generator behind the floor.

    Returns:
        With the 95th percentile when before and after change places at random, sample by sample. `None` when more than
        half of the features are collapsed, or with fewer than 8 samples.

    Raises:
        StatisticError: the two do not hold the same samples and features.
    """
    pair = paired_rows(reference, current)
    if pair is None or len(pair[0]) < FEWEST:
        return None
    n, features = pair[0].shape
    along = directions(features, PROJECTIONS, 0)
    x, y = (each @ along.T for each in pair)
    value = _mean_distance(x, y)
    swapped = (sign_group(n, seed) < 0)[:, :, None]
    replicates = np.array([_mean_distance(np.where(swap, y, x), np.where(swap, x, y)) for swap in swapped])
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, n, noise_floor=floor_of(replicates), lag=lag)


def _mean_distance(x: Float64[ndarray, "samples projections"], y: Float64[ndarray, "samples projections"]) -> float:
    return float(np.abs(np.sort(x, axis=0) - np.sort(y, axis=0)).mean())
