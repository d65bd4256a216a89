"""Effective rank: over how many directions a layer's features spread.

    erank = exp(−Σ p_k ln p_k),   p_k = λ_k / Σλ,   λ the eigenvalues of the features' covariance

What it sees:
    The entropy of the shares that the principal directions have in the variance, as a number of directions: 1 when all
    features move together, d when d features vary equally and independently. The covariance is over samples; a
    convolution's feature is the channel's mean over positions.

Why it matters:
    A layer that receives few directions can pass on no more. Rank falls with depth in deep networks without shortcuts
    or normalisers, in attention without residual connections, and in representations that collapse; a network that
    has lost it learns new targets slowly.

When it is wrong:
    Features in different units: one with a large variance hides the others, as in any covariance. Sites wider than 64
    are seen through 64 fixed orthonormal random directions (seeded by the width), so that their rank reads at most 64
    and is one of the projection; compare it over time and not between widths. From n samples the plain figure for
    equal variances is too low by a factor exp(−d/2n) (Page 1993), 5 % at the 10 samples a dimension below which there
    is no figure; the jackknife takes this order away where the window has 8 parts or more, else there is no interval
    and the bias stays. Over a window of steps the parameters move: what moved with them counts as variance.

Example:
    >>> import torch
    >>> from holdfast.measures.spectrum import parts_of
    >>> x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    >>> reading = effective_rank(parts_of(x), site=Site("fc", "input"), step=1)
    >>> round(reading.value, 1), reading.n
    (8.0, 4000)

References:
    Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    Page 1993, "Average entropy of a subsystem" (the bias).
    Kumar et al. 2021, "Implicit under-parameterization inhibits data-efficient deep reinforcement learning".
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
from holdfast.measures.spectrum import jackknifed, merged, shares
from holdfast.stats.covariance import Covariance

QUANTITY = Quantity(
    "effective-rank", "effective rank", Unit.DIMENSIONS, "lower is worse", (1.0, math.inf), "one extra forward"
)


def effective_rank(window: Sequence[Covariance], *, site: Site, step: int) -> Reading | None:
    """Directions over which features spread, from the entropy of their variances.

    Args:
        window: covariances of parts of the samples, each of others; `parts_of(features)` makes them.
        site: where.
        step: the step.

    Returns:
        The rank, n the number of samples, with 8 parts or more freed of its bias of order 1/n and with a 95 %
        interval. `None` below 10 samples a dimension, and when nothing varies.
    """
    whole = merged(window)
    if whole is None:
        return None
    entropy, half = jackknifed(_entropy, window, whole)
    value, low, high = (
        min(max(math.exp(end), 1.0), float(whole.dimensions))
        for end in (entropy, entropy - (half or 0.0), entropy + (half or 0.0))
    )
    interval = None if half is None else (low, high)
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, whole.count, interval=interval)


def _entropy(m2: Float64[ndarray, "stack dimensions dimensions"]) -> Float64[ndarray, stack]:
    p = shares(m2)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)
