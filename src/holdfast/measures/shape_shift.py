"""Shape shift: how far the shape of the features' distributions moved, apart from mean and spread.

    shape shift = median_j mean_i |z_(i)j(θ′) − z_(i)j(θ)|        z: each state in its own mean and SD, sorted

What it sees:
    W1 between a feature's values before and after, each standardised by itself, over the same samples; the median over
    the features. A pure shift or a pure change of scale is 0 to it: what is left is skewness, tails, clipping, two
    groups that draw apart. 0.1 is a small change of shape; normal against exponential is 0.31.

Why it matters:
    Saturation and dying units change shapes while normalisers hold mean and spread: the part of internal covariate
    shift that a normaliser does not take away.

When it is wrong:
    Sorted values forget which sample is which: samples that change places within one shape are no shift here (see
    parameter-drift). It is never negative, so it is above 0 wherever samples scatter; the floor is the 95th percentile
    when before and after change places at random, sample by sample. In a wide site it is worked out on 64 features,
    evenly spread, and given by the same factor over their own median, so that value over floor is what the exchanges
    say. A convolution's feature is a mean over positions, whose shape tends to the normal. Below 8 samples there is
    no shape.

Example:
    >>> import torch
    >>> def features(values):
    ...     return Features(values, values.double().std(0, correction=0), values.double().mean(0), 1.0)
    >>> before = torch.linspace(-2, 2, 9)[:, None]
    >>> moved = shape_shift(features(before), features(3 * before + 1), site=Site("fc", "input"), step=3, lag=1)
    >>> clipped = shape_shift(features(before), features(before.relu()), site=Site("fc", "input"), step=3, lag=1)
    >>> round(moved.value, 6), round(clipped.value, 2)
    (0.0, 0.39)

References:
    Vallender 1974, "Calculation of the Wasserstein distance between probability distributions on the line".
    Ioffe & Szegedy 2015, "Batch normalization", section 3 (what a normaliser fixes: means and variances).
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
from holdfast.measures.pairing import paired_rows, usable_sd
from holdfast.measures.resampling import floor_of, sign_group
from holdfast.stats.features import Features

QUANTITY = Quantity(
    "shape-shift",
    "shape shift",
    Unit.REFERENCE_SD,
    "higher is worse",
    bounds=(0.0, 2.0),
    cost="one extra forward",
)

FEWEST = 8
FLOOR_FEATURES = 64
FLOOR_VALUES = 50_000
"""At most so many features and values of a side enter the floor."""


@torch.no_grad()
def shape_shift(
    reference: Features, current: Features, *, site: Site, step: int, lag: int, seed: int = 0
) -> Reading | None:
    """How far the features' shapes moved over the same samples.

    Args:
        reference: the site under the parameters before, values `(samples, channels)`.
        current: the same samples, in the same order, under the parameters after.
        site: where.
        step: the step after which `current` was seen.
        lag: optimiser steps between the two.
        seed: of the private generator behind the floor.

    Returns:
        In SDs, each state's own, with a noise floor. `None` when more than half of the features are collapsed before,
        or do not vary over the samples after, or fewer than 8 samples are finite.

    Raises:
        StatisticError: the two do not hold the same samples and features.
    """
    pair = paired_rows(reference, current)
    if pair is None or len(pair[0]) < FEWEST:
        return None
    x, y = pair
    # In reference SD, so that what does not vary over the samples is as nothing beside 1.
    vary = usable_sd(x.std(0), 1.0) & usable_sd(y.std(0), 1.0)
    if 2 * int(np.count_nonzero(vary)) < reference.channels:
        return None
    x, y = x[:, vary], y[:, vary]
    value = _median(x, y)
    return Reading(
        QUANTITY.name, site, step, value, QUANTITY.unit, len(x), noise_floor=_floor(x, y, value, seed), lag=lag
    )


def _median(x: Float64[ndarray, "samples features"], y: Float64[ndarray, "samples features"]) -> float:
    """W1 of each feature, both sides standardised; the median of them."""
    # What does not vary in one arrangement has no shape there.
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (np.sort((each - each.mean(0)) / each.std(0), axis=0) for each in (x, y))
    return float(np.median(np.nan_to_num(np.abs(first - second).mean(0))))


def _floor(
    x: Float64[ndarray, "samples features"], y: Float64[ndarray, "samples features"], value: float, seed: int
) -> float:
    """95th percentile of the exchanges, in the value's own measure."""
    n, features = x.shape
    taken = min(features, FLOOR_FEATURES, max(1, FLOOR_VALUES // n))
    chosen = np.linspace(0, features - 1, taken).round().astype(int)
    x, y = x[:, chosen], y[:, chosen]
    swapped = (sign_group(n, seed) < 0)[:, :, None]
    floor = floor_of(np.array([_median(np.where(swap, y, x), np.where(swap, x, y)) for swap in swapped]))
    here = _median(x, y)
    return floor * (value / here) if here > 0 else floor
