"""Parameter drift: how far the same inputs' features moved because the parameters moved.

    d_ij   = h_j(x_i; θ′) − h_j(x_i; θ)
    drift² = mean_j (d̄_j² − s²_d,j / n) / σ²_ref,j        averaged over features first, clipped at 0 last
    drift  = √max(0, drift²)

What it sees:
    The shift of a site's features over the *same* samples between two states of the parameters, in standard
    deviations that the feature had at the reference time. Nothing but the parameters differs between the two passes,
    so this, and no difference between two batches, is internal covariate shift.

Why it matters:
    A layer that learns on a moving input follows a moving target. Where drift per step is a sizeable part of an SD,
    the layer unlearns and relearns instead of fitting.

When it is wrong:
    The unit is the SD that was observed, on few samples itself uncertain (about 1/√(2n) of it for normal data); the
    interval holds in that unit and does not include its uncertainty. The floor is exact where the samples'
    differences are symmetric about zero, approximate where they are skewed and few (below some 16). Drift is the
    shift of feature *means*: a layer may change its scale or shape without any; see scale-shift. Features that
    barely vary at the reference time (collapsed) have no unit and are left out; with more than half of them gone
    there is no figure. Fewer than six samples cannot rise above their floor. At the batch just trained on, drift is
    over-fitted to that batch; the fixed probe is not.

Example:
    >>> import torch
    >>> def features(values):
    ...     return Features(values, torch.ones(2).double(), torch.zeros(2).double(), 1.0)
    >>> before = torch.zeros(8, 2)
    >>> after = torch.full((8, 2), 0.5)                       # every sample moved by half a reference SD
    >>> reading = parameter_drift(features(before), features(after), site=Site("fc", "input"), step=3, lag=1)
    >>> reading.value, reading.interval, reading.n, reading.above_noise
    (0.5, (0.5, 0.5), 8, True)

References:
    Ioffe & Szegedy 2015, "Batch normalization", section 2 (the definition of internal covariate shift).
    Arcones & Giné 1992, "On the bootstrap of U and V statistics" (why the resampled data are centred).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.pairing import paired_difference, usable_features
from holdfast.measures.resampling import floor_of, group_sizes, group_sums, signs
from holdfast.measures.student import NORMAL_975, student_975
from holdfast.stats.features import Features

QUANTITY = Quantity(
    "parameter-drift",
    "parameter drift",
    Unit.REFERENCE_SD,
    "higher is worse",
    cost="one extra forward",
    logarithmic=True,
)

# Each draw of an error counts with its opposite.
_BOTH = np.array([[1.0], [-1.0]])
_TINY = 1e-300


@torch.no_grad()
def parameter_drift(
    reference: Features, current: Features, *, site: Site, step: int, lag: int, seed: int = 0
) -> Reading | None:
    """How far the features of the same samples moved, in reference SD.

    Args:
        reference: the site under the parameters before, values `(samples, channels)`.
        current: the same samples, in the same order, under the parameters after.
        site: where.
        step: the step after which `current` was seen.
        lag: optimiser steps between the two.
        seed: of the private generator behind floor and interval.

    Returns:
        Value, 95 % interval and noise floor (95th percentile when the differences' signs are flipped at random:
        the samples scatter as before and nothing moves them systematically). `None` when more than half of the
        features are collapsed, or fewer than two samples are finite.

    Raises:
        StatisticError: the two do not hold the same samples and features.
    """
    usable = usable_features(reference)
    if usable is None:
        return None
    d = paired_difference(reference, current, usable)
    if len(d) < 2:
        return None
    shift = mean_shift(d, seed)
    return Reading(
        QUANTITY.name,
        site,
        step,
        shift.length,
        QUANTITY.unit,
        len(d),
        noise_floor=shift.floor,
        interval=_interval(shift.gram, shift.flips, shift.flipped_gram, shift.sizes, shift.length**2),
        lag=lag,
    )


class MeanShift(NamedTuple):
    """How far the mean of differences lies from zero, and what its interval is made of.

    Args:
        length: root mean square over the features, without what the samples' scatter adds; 0 where that is all.
        floor: its 95th percentile when the signs are flipped at random.
        gram: inner products of the groups' sums.
        flips: the signs, one row a replicate.
        flipped_gram: `flips @ gram`.
        sizes: samples in each group.
    """

    length: float
    floor: float
    gram: Float64[ndarray, "groups groups"]
    flips: Float64[ndarray, "replicates groups"]
    flipped_gram: Float64[ndarray, "replicates groups"]
    sizes: Int64[ndarray, groups]


def mean_shift(d: Float64[ndarray, "samples features"], seed: int = 0) -> MeanShift:
    """The mean of paired differences, by its length over the features.

    Args:
        d: one row a sample, at least two; finite.
        seed: of the private generator behind the floor.

    Returns:
        Length and floor in the unit of `d`.
    """
    n, channels = d.shape
    own = float(np.vdot(d, d)) / channels  # Σ_i |d_i|²
    sizes = group_sizes(n)
    grouped = group_sums(d, sizes)
    gram = grouped @ grouped.T / channels
    # |Σ d_i|² − Σ |d_i|² = Σ_{i≠k} d_i·d_k, and its mean over the n(n−1) pairs is mean_j (d̄² − s²_d/n) / σ².
    squared = (float(gram.sum()) - own) / (n * (n - 1))
    flips = signs(len(sizes), seed)
    flipped_gram = flips @ gram
    floor = floor_of((np.einsum("bg,bg->b", flipped_gram, flips) - own) / (n * (n - 1)))
    return MeanShift(math.sqrt(max(0.0, squared)), math.sqrt(max(0.0, floor)), gram, flips, flipped_gram, sizes)


def _interval(
    gram: Float64[ndarray, "groups groups"],
    flips: Float64[ndarray, "replicates groups"],
    flipped_gram: Float64[ndarray, "replicates groups"],
    sizes: Int64[ndarray, groups],
    squared: float,
) -> tuple[float, float]:
    """95 % interval of the drift t: all t at which the estimate would not be a surprise.

    Were the drift t, in direction u = d̄/|d̄|, the estimate would be
        T(t) = t² + 2 t v + q,   v = u·e,   q = |e|² − E|e|²,   e the error of the mean.
    e is drawn by giving the centred differences random signs (centred: signs on the raw ones, or a naive resampling
    of them, would count s²/n a second time). T rises in t, so P(T(t) ≥ estimate) is the share of draws whose root
        t_b = −v_b + √(v_b² + estimate − q_b)
    is at most t, and the 2.5th and 97.5th percentiles of the roots are the interval's ends: no grid. For one feature
    this is d̄ ± t₉₇.₅ s/√n folded at 0.

    Two refinements, each found by simulating coverage: errors are stretched by t₉₇.₅(G−1)/z₉₇.₅ (few samples; an
    upward q is not, it is too wide already), and draws that pull the estimate down are studentised by the variance
    along the direction that such a draw would have shown (otherwise correlated features cover 0.88 instead of 0.95).
    """
    groups, n = len(sizes), int(sizes.sum())
    row, total = gram.sum(1), float(gram.sum())
    mean = math.sqrt(max(total, 0.0)) / n  # |d̄|
    small = groups / (groups - 1)
    stretch = student_975(groups - 1) / NORMAL_975 * math.sqrt(small)

    # R = H D with H = I − s 1ᵀ/n: the groups' sums without their share s_g d̄ of the mean.
    share = sizes / n
    along = (row - share * total) / n  # R d̄
    half = flipped_gram - np.outer(flips @ share, row)  # ε H D Dᵀ
    scatter = half - np.outer(half.sum(1), share)  # ε R Rᵀ
    square = np.einsum("bg,bg->b", scatter, flips)  # |Σ ε_g R_g|²
    own = float(np.trace(gram) - 2 * (share @ row) + (share @ share) * total)  # Σ |R_g|²

    unit = stretch / n
    q = (square - own) / n**2
    q *= np.where(q < 0, stretch**2, small)
    shift = (unit * _BOTH) * (flips @ along)  # ±e·d̄
    v = shift / max(mean, _TINY)
    # Variance along the direction of d̄ ± e, against that along d̄.
    variance = (2 * unit * _BOTH) * (scatter @ along) + unit**2 * np.einsum("bg,bg->b", scatter, scatter)
    variance += float(along @ along)
    length = 2 * shift + (unit**2 * square + mean**2)
    ratio = float(along @ along) * length / np.maximum(variance * mean**2, _TINY)
    v *= np.sqrt(np.where((v < 0) & (variance > 0), np.maximum(ratio, 0.0), 1.0))
    inside = v * v + (squared - q)
    roots = np.where(inside > 0, np.maximum(np.sqrt(np.maximum(inside, 0.0)) - v, 0.0), 0.0).ravel()
    tail = int(0.025 * (len(roots) + 2))
    ordered = np.partition(roots, (tail - 1, len(roots) - tail))
    value = math.sqrt(squared)
    return min(float(ordered[tail - 1]), value), max(float(ordered[-tail]), value)
