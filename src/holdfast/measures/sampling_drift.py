"""Sampling drift: how far two batches are expected to lie apart when nothing moved.

    sampling = √ mean_j ( s_j² (1/n + 1/m) / σ²_ref,j )

What it sees:
    The root mean square of observed-drift between independent batches of these sizes under *unchanged* parameters,
    from the scatter s_j of the samples' feature values within each batch. It is an expectation, not a percentile:
    some 40 % of null differences lie above it; the 95th percentile is observed-drift's floor.

Why it matters:
    It is the part of what a naive monitor plots that a larger batch would remove. Set against parameter-drift over
    the same lag it tells how much of the observed motion is the network's own.

When it is wrong:
    Batches that are not drawn at random differ by more. The interval takes samples as independent, and the unit
    (the reference SD) as given.

Example:
    >>> import torch
    >>> def features(values):
    ...     return Features(values, values.double().std(0, correction=0), values.double().mean(0), 1.0)
    >>> batch = features(torch.tensor([[-1.0], [1.0]] * 4))  # s² = 8/7, σ² = 1, n = m = 8
    >>> round(sampling_drift(batch, batch, site=Site("fc", "input"), step=9, lag=3).value, 6)  # √(2/7)
    0.534522

References:
    Ioffe & Szegedy 2015, "Batch normalization", section 2 (what internal covariate shift is, and so what it is not).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.pairing import numbers, require_same_features, usable_features
from holdfast.measures.student import student_975
from holdfast.stats.features import Features

QUANTITY = Quantity("sampling-drift", "sampling drift", Unit.REFERENCE_SD, "neither", logarithmic=True)


@torch.no_grad()
def sampling_drift(
    reference: Features, current: Features, *, site: Site, step: int, lag: int | None = None
) -> Reading | None:
    """Expected difference of two batches at the same parameters, in reference SD.

    Args:
        reference: the earlier batch, values `(samples, channels)`.
        current: the later batch.
        site: where.
        step: the step at which `current` was seen.
        lag: optimiser steps between the two.

    Returns:
        Value and 95 % interval; n is the smaller batch. `None` when more than half of the reference's features are
        collapsed, or a batch has fewer than two finite samples.

    Raises:
        StatisticError: the two have different numbers of features.
    """
    require_same_features(reference, current)
    usable = usable_features(reference)
    if usable is None:
        return None
    scatter = []
    for batch in (reference, current):
        rows = usable.columns(numbers(batch)) / usable.sd
        if not math.isfinite(rows.sum()):
            rows = rows[np.isfinite(rows).all(1)]
        if len(rows) < 2:
            return None
        # Each sample's own contribution, enlarged so that their mean is the unbiased variance.
        scatter.append(np.square(rows - rows.mean(0)).mean(1) * (len(rows) / (len(rows) - 1)))
    n, m = len(scatter[0]), len(scatter[1])
    contributions = np.concatenate(scatter)
    variance = float(contributions.mean())
    value = math.sqrt(variance * (1 / n + 1 / m))
    # The interval is symmetric in the logarithm: a variance cannot be negative and its estimate is skewed.
    relative = float(contributions.std(ddof=1)) / math.sqrt(n + m) / variance if variance > 0 else 0.0
    factor = math.exp(min(student_975(n + m - 2) * relative / 2, 700.0))
    return Reading(
        QUANTITY.name, site, step, value, QUANTITY.unit, min(n, m), interval=(value / factor, value * factor), lag=lag
    )
