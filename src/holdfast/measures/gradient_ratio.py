"""Gradient ratio: how large a parameter's gradient is beside the parameter.

    ‖G‖ / ‖W‖

What it sees:
    Norm of the gradient of one parameter over its own norm. Times the learning rate it is the relative step of plain
    SGD.

Why it matters:
    It puts layers of unequal size and scale beside each other: where it differs by powers of ten, one learning rate is
    wrong for some of them. Layer-wise rates (LARS) are chosen by it.

When it is wrong:
    Adaptive optimisers rescale the gradient: for what a step really does see update-ratio. Under a normaliser it scales
    as 1/‖W‖²: a ratio that falls as the weight grows is not a vanishing gradient. Parameters that start at zero
    (biases, residual gains) have no scale.

Example:
    >>> import torch
    >>> g, w = torch.tensor([0.3, 0.4]), torch.tensor([3.0, 4.0])
    >>> round(gradient_ratio(g, w, site=Site("fc", "weight_grad", leaf="weight"), step=1).value, 6)
    0.1

References:
    You, Gitman & Ginsburg 2017, "Large batch training of convolutional networks".
"""

from __future__ import annotations

import math

from torch import Tensor

from holdfast.core.protocols import History
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.l2_norm import l2_norm
from holdfast.measures.weights import same_shape

QUANTITY = Quantity("gradient-ratio", "gradient over weight", Unit.RATIO, "neither", logarithmic=True)


def gradient_ratio(
    gradient: float | Tensor, weight: float | Tensor, *, site: Site, step: int, n: int | None = None
) -> Reading:
    """Size of a gradient over the size of its parameter.

    Args:
        gradient: of the loss by the parameter, or its norm.
        weight: the parameter, or its norm.
        site: where.
        step: the step.
        n: number of elements, where numbers are given.

    Returns:
        The ratio: 0 where no gradient arrives, infinite where one arrives at a parameter of norm 0.

    Raises:
        InputError: the shapes differ.
        StatisticError: numbers without `n`.
    """
    if isinstance(gradient, Tensor) and isinstance(weight, Tensor):
        same_shape(gradient, weight, "a gradient and its weight")
    slope, count = l2_norm(gradient, n)
    size, _ = l2_norm(weight, n)
    value = slope / size if size else (math.inf if slope > 0 else slope)
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, count)


def over(history: History) -> list[Reading]:
    """Of a stored run, wherever both norms of a parameter were read at one step.

    Args:
        history: of a run.

    Returns:
        One reading for each such pair, in rising order of step.
    """
    sizes = {(each.site.at(port="weight_grad"), each.step): each for each in history.readings("weight-norm")}
    return [
        gradient_ratio(each.value, sizes[each.site, each.step].value, site=each.site, step=each.step, n=each.n)
        for each in history.readings("gradient-norm")
        if each.site.port == "weight_grad" and (each.site, each.step) in sizes
    ]
