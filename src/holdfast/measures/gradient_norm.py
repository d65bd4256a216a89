"""Gradient norm: the size of the loss's derivative by a tensor.

    ‖∂L/∂x‖₂

What it sees:
    Euclidean norm of the gradient of a parameter, or of a layer's output, on one batch.

Why it matters:
    Its course over depth shows vanishing and exploding gradients (backward-gain, gradient-slope); a jump over time
    precedes or marks a spike.

When it is wrong:
    It grows with the number of elements and, for outputs under a mean loss, shrinks with the batch: compare over time
    at one place, or over equal layers. Under a normaliser the gradient of a weight scales as 1/‖W‖: falling norms
    alone are not vanishing. From moments of a sample of the elements it is an estimate without an interval (elements
    are not independent); from moments it is of the finite elements only.

Example:
    >>> import torch
    >>> gradient_norm(torch.tensor([3.0, 4.0]), site=Site("fc", "weight_grad", leaf="weight"), step=1).value
    5.0

References:
    Pascanu, Mikolov & Bengio 2013, "On the difficulty of training recurrent neural networks".
"""

from __future__ import annotations

from torch import Tensor

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.l2_norm import l2_norm
from holdfast.stats.moments import Moments
from holdfast.stats.summary import Summary

QUANTITY = Quantity("gradient-norm", "gradient norm", Unit.NORM, "neither", logarithmic=True)


def gradient_norm(
    current: float | Tensor | Moments | Summary, *, site: Site, step: int, n: int | None = None
) -> Reading:
    """Euclidean norm of a gradient.

    Args:
        current: the gradient, its moments, or its norm where that was computed already.
        site: where.
        step: the step.
        n: elements of the whole tensor, where `current` is a number or holds a sample of the elements only.

    Returns:
        The norm; not finite where the gradient is not.

    Raises:
        StatisticError: a number without `n`.
    """
    value, count = l2_norm(current, n)
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, count)
