"""Gradient predictiveness: how far the gradient of one batch changes over the steps that it proposes.

    max_s ‖∇L(θ) − ∇L(θ − s g)‖,    s from ½ η to 4 η

What it sees:
    The greatest change of the gradient, of the same batch, along the negative gradient. Zero on a linear loss; on a
    quadratic it is 4 η ‖H g‖. The less, the better the gradient predicts itself (the published name is of what it
    is low for).

Why it matters:
    A gradient that is no longer true a step away is bad advice: steps must be short.

When it is wrong:
    It has the gradient's scale: a loss or a parametrisation with larger gradients changes them by more. The share of
    it is relative-gradient-change. The same batch is used throughout: differences between the gradients of
    consecutive mini-batches are mostly sampling and are not this. One line on one batch; training and evaluation mode
    differ under batch statistics.

Example:
    >>> path = Descent(loss=2.0, gradient_norm=2.0, lengths=(0.5, 1.0), losses=(1.25, 1.0), changes=(0.5, 1.0), n=64)
    >>> gradient_predictiveness(path).value
    1.0

References:
    Santurkar et al. 2018, "How does batch normalization help optimization?", section 3.1 and figure 4b.
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.descent import Descent

QUANTITY = Quantity(
    "gradient-predictiveness",
    "change of the gradient along itself",
    Unit.NORM,
    "higher is worse",
    cost="many forwards and backwards",
    logarithmic=True,
)


def gradient_predictiveness(path: Descent, *, site: Site | None = None, step: int = 0) -> Reading | None:
    """Greatest change of the gradient along a line.

    Args:
        path: losses and gradients along it.
        site: where to note it; the model's root when `None`.
        step: the step.

    Returns:
        The change, infinite where the gradient overflows; `None` without a finite gradient to follow.
    """
    if not path.usable:
        return None
    return Reading(QUANTITY.name, site or Site("", "weight"), step, max(path.changes), QUANTITY.unit, path.n)
