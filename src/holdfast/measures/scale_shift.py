"""Scale shift: how far the same inputs' features changed their spread because the parameters moved.

    scale shift = median_j |ln σ_j(θ′) − ln σ_j(θ)|

What it sees:
    The typical change of a feature's SD (over samples and positions), as a logarithm of a ratio: 0.69 is a doubling
    or a halving. The median, so that a few features that die or wake up do not make the figure: they make
    scale-shift-p95.

Why it matters:
    A layer whose input keeps its mean and changes its spread has shifted too; parameter-drift is blind to it.

When it is wrong:
    It is not debiased: where samples scatter it is above zero without any systematic change, which is what the floor
    shows. The floor needs the spread sample by sample: it is given where a sample has one position, and missing for
    convolutions, where the figure is exact for the samples seen and silent about others. A saturating layer may
    change its shape without changing its SD.

Example:
    >>> import torch
    >>> def features(values):
    ...     return Features(values, values.double().std(0, correction=0), values.double().mean(0), 1.0)
    >>> before = torch.tensor([[-1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [1.0, -2.0]])
    >>> reading = scale_shift(features(before), features(2 * before), site=Site("fc", "input"), step=3, lag=1)
    >>> round(reading.value, 6)                               # ln 2
    0.693147

References:
    Santurkar et al. 2018, "How does batch normalization help optimization?", section 2 (means and variances of a
    layer's input over training).
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
from holdfast.measures.resampling import floor_of, group_sizes, group_sums, signs
from holdfast.stats.features import Features

QUANTITY = Quantity("scale-shift", "scale shift", Unit.LOG_RATIO, "higher is worse", cost="one extra forward")

FLIPS = 39
"""Of the sign flips: with the observed arrangement 40, of which 5 % is 2, and medians are slow."""


@torch.no_grad()
def scale_shift(
    reference: Features, current: Features, *, site: Site, step: int, lag: int, seed: int = 0
) -> Reading | None:
    """How far the spread of the features moved over the same samples.

    Args:
        reference: the site under the parameters before, values `(samples, channels)`.
        current: the same samples, in the same order, under the parameters after.
        site: where.
        step: the step after which `current` was seen.
        lag: optimiser steps between the two.
        seed: of the private generator behind the floor.

    Returns:
        The median of |Δ ln σ|, with a floor where samples have one position. `None` when more than half of the
        features are collapsed before, or are after.

    Raises:
        StatisticError: the two have different numbers of features.
    """
    return quantile_of_scale_shift(QUANTITY, 0.5, reference, current, site=site, step=step, lag=lag, seed=seed)


def quantile_of_scale_shift(
    quantity: Quantity,
    quantile: float,
    reference: Features,
    current: Features,
    *,
    site: Site,
    step: int,
    lag: int,
    seed: int,
) -> Reading | None:
    """A quantile over the features of |Δ ln σ|.

    Args:
        quantity: what the reading is of.
        quantile: between 0 and 1.
        reference: the site under the parameters before.
        current: the same samples under the parameters after.
        site: where.
        step: the step after which `current` was seen.
        lag: optimiser steps between the two.
        seed: of the private generator behind the floor.

    Returns:
        As `scale_shift`.

    Raises:
        StatisticError: the two have different numbers of features.
    """
    require_same_features(reference, current)
    if usable_features(reference) is None or usable_features(current) is None:
        return None
    before, after = reference.sd.cpu().numpy(), current.sd.cpu().numpy()
    usable = usable_sd(before, reference.rms) & usable_sd(after, current.rms)
    if 2 * int(np.count_nonzero(usable)) < len(usable) or not usable.any():
        return None
    ratio = np.log(after[usable] / before[usable])
    return Reading(
        quantity.name,
        site,
        step,
        float(np.quantile(np.abs(ratio), quantile)),
        quantity.unit,
        reference.samples,
        noise_floor=_floor(reference, current, usable, quantile, seed),
        lag=lag,
    )


def _floor(
    reference: Features, current: Features, usable: Bool[ndarray, channels], quantile: float, seed: int
) -> float | None:
    """95th percentile when each sample's own contribution to Δ ln σ changes its sign at random.

    To first order Δ ln σ_j = mean_i c_ij with c_ij = ((y_ij − ȳ_j)² − (x_ij − x̄_j)²) / (s²_x,j + s²_y,j).
    """
    if reference.samples != current.samples or reference.samples < 2:
        return None
    x, y = numbers(reference)[:, usable], numbers(current)[:, usable]
    if not (math.isfinite(x.sum()) and math.isfinite(y.sum())):
        return None
    x2, y2 = np.square(x - x.mean(0)), np.square(y - y.mean(0))
    before, after = x2.mean(0), y2.mean(0)
    if not (_one_position(before, reference, usable) and _one_position(after, current, usable)):
        return None
    sizes = group_sizes(len(x))
    flips = signs(len(sizes), seed)[:FLIPS]
    flipped = np.abs(flips @ group_sums((y2 - x2) / ((before + after) * len(x)), sizes))
    return floor_of(_row_medians(flipped) if quantile == 0.5 else np.quantile(flipped, quantile, axis=1))


def _one_position(variance: Float64[ndarray, features], features: Features, usable: Bool[ndarray, channels]) -> bool:
    """Whether the variance of the samples' values is the whole variance: means over positions would have less."""
    whole = features.sd.cpu().numpy()[usable] ** 2
    return bool((np.abs(variance - whole) <= 1e-3 * whole).all())


def _row_medians(rows: Float64[ndarray, "replicates features"]) -> Float64[ndarray, replicates]:
    """The median of each row: what `numpy.median` gives, in a quarter of its time."""
    low, high = (rows.shape[1] - 1) // 2, rows.shape[1] // 2
    ordered = np.partition(rows, (low, high), axis=1)
    return (ordered[:, low] + ordered[:, high]) / 2
