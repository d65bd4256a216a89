"""Variance rank: the share of directions that holds 99 % of the variance.

    min{k : λ_1 + … + λ_k ≥ 0.99 Σλ} / d,   λ falling

What it sees:
    How many principal directions of a layer's features are needed for all but a hundredth of the variance, over the
    width (over 64 where the site was projected).

Why it matters:
    What lies in the remaining directions is small beside the rest: width that is paid for and hardly used.

When it is wrong:
    As effective-rank: units, projection of sites wider than 64, drift within the window. It moves in steps of 1/d, so
    that no jackknife gives it an interval. From n samples the weak directions look weaker than they are: for 64 equal
    variances at 10 samples a dimension it reads one direction too few. Noise in every direction, however little, counts
    when it adds up to a hundredth.

Example:
    >>> import torch
    >>> from holdfast.measures.spectrum import parts_of
    >>> x = torch.randn(400, 1, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> variance_rank(parts_of(x), site=Site("fc", "input"), step=1).value
    0.25

References:
    Jolliffe 2002, "Principal component analysis", section 6.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.spectrum import merged, shares
from holdfast.stats.covariance import Covariance

QUANTITY = Quantity("variance-rank", "variance rank", Unit.FRACTION, "lower is worse", (0.0, 1.0), "one extra forward")

_HELD = 0.99


def variance_rank(window: Sequence[Covariance], *, site: Site, step: int) -> Reading | None:
    """Share of the directions that holds 99 % of the variance.

    Args:
        window: covariances of parts of the samples, each of others; `parts_of(features)` makes them.
        site: where.
        step: the step.

    Returns:
        The share, n the number of samples. `None` below 10 samples a dimension, and when nothing varies.
    """
    whole = merged(window)
    if whole is None:
        return None
    held = np.cumsum(shares(whole.m2)[::-1])
    # a tie by rounding, such as 99 equal ones of 100, is a tie
    needed = int(np.searchsorted(held, _HELD - 1e-12)) + 1
    return Reading(QUANTITY.name, site, step, needed / whole.dimensions, QUANTITY.unit, whole.count)
