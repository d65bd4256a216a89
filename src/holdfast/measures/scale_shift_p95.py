"""Scale shift, 95th percentile: how far the features that changed their spread the most did.

    p95 = 95th percentile over j of |ln σ_j(θ′) − ln σ_j(θ)|

What it sees:
    The SD ratio that one feature in twenty exceeds, over the same inputs. Far above scale-shift (the median) it tells
    that a few features change their scale, or die or wake, while the others stay.

Why it matters:
    A layer whose typical feature is steady can still hand on a few that explode; weight decay, clipping and learning
    rates are too coarse to answer them, a normaliser by channel is not.

When it is wrong:
    As scale-shift: not debiased, with a floor only where a sample has one position. With fewer than 20 features it is
    nearly the greatest. Features that are collapsed before or after are left out, those that died completely among
    them: see dead-units.

Example:
    >>> import torch
    >>> def features(values):
    ...     return Features(values, values.double().std(0, correction=0), values.double().mean(0), 1.0)
    >>> before = torch.tensor([[-1.0], [1.0]]).repeat(2, 30)
    >>> after = before * torch.where(torch.arange(30) < 3, 4.0, 1.0)     # three of thirty features, by 4
    >>> reading = scale_shift_p95(features(before), features(after), site=Site("fc", "input"), step=3, lag=1)
    >>> round(reading.value, 6)                               # ln 4
    1.386294

References:
    Santurkar et al. 2018, "How does batch normalization help optimization?", section 2 (means and variances of a
    layer's input over training).
"""

from __future__ import annotations

import torch

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.scale_shift import quantile_of_scale_shift
from holdfast.stats.features import Features

QUANTITY = Quantity("scale-shift-p95", "scale shift, p95", Unit.LOG_RATIO, "higher is worse", cost="one extra forward")


@torch.no_grad()
def scale_shift_p95(
    reference: Features, current: Features, *, site: Site, step: int, lag: int, seed: int = 0
) -> Reading | None:
    """How far the spread of the features moved that moved the most, over the same samples.

    Args:
        reference: the site under the parameters before, values `(samples, channels)`.
        current: the same samples, in the same order, under the parameters after.
        site: where.
        step: the step after which `current` was seen.
        lag: optimiser steps between the two.
        seed: of the private generator behind the floor.

    Returns:
        The 95th percentile of |Δ ln σ|, with a floor where samples have one position. `None` when more than half of
        the features are collapsed before, or are after.

    Raises:
        StatisticError: the two have different numbers of features.
    """
    return quantile_of_scale_shift(QUANTITY, 0.95, reference, current, site=site, step=step, lag=lag, seed=seed)
