"""Update ratio: how large one step is beside the parameter that it changes.

    ‖ΔW‖ / ‖W‖

What it sees:
    The real change of a parameter over one optimiser step (momentum, adaptive scaling, decay, clipping included)
    over its norm.

Why it matters:
    The right learning rate differs from layer to layer; the ratio puts them on one scale. Around 1e-3 is a common rule
    of thumb for weights; 1e-1 rewrites a layer in ten steps, 1e-6 is a layer that stands still.

When it is wrong:
    The rule of thumb is for weight matrices, not for biases, gains or embeddings of which few rows are touched. A
    parameter that starts at zero has no scale: the ratio is infinite (0 where it did not move either). Under weight
    decay with a normaliser the equilibrium ratio is set by rate and decay, not by the loss.

Example:
    >>> import torch
    >>> change, weight = torch.tensor([0.3, 0.4]), torch.tensor([30.0, 40.0])
    >>> round(update_ratio(change, weight, site=Site("fc", "update", leaf="weight"), step=1).value, 9)
    0.01

References:
    You, Gitman & Ginsburg 2017, "Large batch training of convolutional networks" (layer-wise ratios).
    Karpathy 2015, CS231n notes, "Ratio of weights:updates".
"""

from __future__ import annotations

import math

from torch import Tensor

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.l2_norm import l2_norm
from holdfast.measures.weights import same_shape

QUANTITY = Quantity("update-ratio", "update ratio", Unit.RATIO, "neither", logarithmic=True)


def update_ratio(
    update: float | Tensor, weight: float | Tensor, *, site: Site, step: int, n: int | None = None, lag: int = 1
) -> Reading:
    """Size of an update over the size of the parameter.

    Args:
        update: W after the step − W before, or its norm.
        weight: the parameter, or its norm.
        site: where.
        step: the step.
        n: number of elements, where numbers are given.
        lag: optimiser steps that the update spans.

    Returns:
        The ratio: 0 where nothing moved, infinite where a parameter of norm 0 did.

    Raises:
        InputError: the shapes differ.
        StatisticError: numbers without `n`.
    """
    if isinstance(update, Tensor) and isinstance(weight, Tensor):
        same_shape(update, weight, "an update and its weight")
    change, count = l2_norm(update, n)
    size, _ = l2_norm(weight, n)
    value = change / size if size else (math.inf if change > 0 else change)
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, count, lag=lag)
