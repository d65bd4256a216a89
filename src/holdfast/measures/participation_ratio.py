"""Participation ratio: over how many directions a layer's features spread, counting the strong ones most.

    PR = (Σλ)² / Σλ²,   λ the eigenvalues of the features' covariance

What it sees:
    The number of equally strong directions that would have the same mean square of variances. Never above the
    effective rank; the weak directions of a long tail hardly count.

Why it matters:
    It needs no eigenvalues, only entries of the covariance, and is the usual dimension of neural activity. Beside the
    effective rank it tells a few strong directions over a long tail from an even spread.

When it is wrong:
    As effective-rank: units, projection of sites wider than 64, drift within the window. From n samples the plain
    figure for equal normal variances reads d / (1 + d/n), 9 % too low at 10 samples a dimension, and lower for heavy
    tails; the jackknife takes this order away where the window has 8 parts or more.

Example:
    >>> import torch
    >>> from holdfast.measures.spectrum import parts_of
    >>> x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    >>> reading = participation_ratio(parts_of(x), site=Site("fc", "input"), step=1)
    >>> round(reading.value, 1), reading.n
    (8.0, 4000)

References:
    Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.spectrum import jackknifed, merged
from holdfast.stats.covariance import Covariance

QUANTITY = Quantity(
    "participation-ratio",
    "participation ratio",
    Unit.DIMENSIONS,
    "lower is worse",
    (1.0, math.inf),
    "one extra forward",
)


def participation_ratio(window: Sequence[Covariance], *, site: Site, step: int) -> Reading | None:
    """Directions over which features spread, from the mean square of their variances.

    Args:
        window: covariances of parts of the samples, each of others; `parts_of(features)` makes them.
        site: where.
        step: the step.

    Returns:
        The ratio, n the number of samples, with 8 parts or more freed of its bias of order 1/n and with a 95 %
        interval. `None` below 10 samples a dimension, and when nothing varies.
    """
    whole = merged(window)
    if whole is None:
        return None
    purity, half = jackknifed(_purity, window, whole)
    least = 1.0 / whole.dimensions
    value, high, low = (
        1.0 / min(max(end, least), 1.0) for end in (purity, purity - (half or 0.0), purity + (half or 0.0))
    )
    interval = None if half is None else (low, high)
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, whole.count, interval=interval)


def _purity(m2: Float64[ndarray, "stack dimensions dimensions"]) -> Float64[ndarray, stack]:
    """Σλ² / (Σλ)²: the squares of the entries over the square of the trace."""
    return np.square(m2).sum((1, 2)) / np.square(np.trace(m2, axis1=1, axis2=2))
