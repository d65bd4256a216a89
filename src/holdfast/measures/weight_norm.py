"""Weight norm: the size of a parameter.

    ‖W‖₂ (Frobenius)

What it sees:
    Euclidean norm of one parameter after the step.

Why it matters:
    Before a normaliser only a weight's direction counts: its norm sets the effective learning rate η/‖W‖², and a norm
    that grows without bound slows that layer down, one that shrinks speeds it up.

When it is wrong:
    It grows with the number of elements: compare over time at one place. Without a normaliser a larger norm is a
    larger function, not a slower one.

Example:
    >>> import torch
    >>> weight_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), site=Site("fc", "weight", leaf="weight"), step=1).value
    5.0

References:
    van Laarhoven 2017, "L2 regularization versus batch and weight normalization".
"""

from __future__ import annotations

from torch import Tensor

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.l2_norm import l2_norm

QUANTITY = Quantity("weight-norm", "weight norm", Unit.NORM, "neither", logarithmic=True)


def weight_norm(current: float | Tensor, *, site: Site, step: int, n: int | None = None) -> Reading:
    """Euclidean norm of a parameter.

    Args:
        current: the parameter, or its norm where that was computed already.
        site: where.
        step: the step.
        n: number of elements, where `current` is a number.

    Returns:
        The norm; not finite where the parameter is not.

    Raises:
        StatisticError: a number without `n`.
    """
    value, count = l2_norm(current, n)
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, count)
