"""Relative gradient change: the share of itself by which a gradient changes over the steps that it proposes.

    max_s ‖∇L(θ) − ∇L(θ − s g)‖ / ‖g‖,    s from ½ η to 4 η

What it sees:
    Gradient predictiveness without the gradient's scale. At 1 the gradient a step away has nothing to do with the
    one that was followed, or has vanished; at 2 it is reversed.

Why it matters:
    Between models, and along a run in which gradients shrink, this is the figure that can be compared.

When it is wrong:
    Near a minimum g is small and the figure grows though all is well. On a quadratic it is 4 η ‖H g‖/‖g‖, so that it
    follows the step size. One line on one batch; training and evaluation mode differ under batch statistics.

Example:
    >>> path = Descent(loss=2.0, gradient_norm=2.0, lengths=(0.5, 1.0), losses=(1.25, 1.0), changes=(0.5, 1.0), n=64)
    >>> relative_gradient_change(path).value
    0.5

References:
    Santurkar et al. 2018, "How does batch normalization help optimization?", section 3.1.
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.descent import Descent

QUANTITY = Quantity(
    "relative-gradient-change",
    "relative change of the gradient along itself",
    Unit.RATIO,
    "higher is worse",
    cost="many forwards and backwards",
    logarithmic=True,
)


def relative_gradient_change(path: Descent, *, site: Site | None = None, step: int = 0) -> Reading | None:
    """Greatest change of the gradient along a line, over the gradient's norm at the start.

    Args:
        path: losses and gradients along it.
        site: where to note it; the model's root when `None`.
        step: the step.

    Returns:
        The ratio, infinite where the gradient overflows; `None` without a finite gradient to follow.
    """
    if not path.usable:
        return None
    value = max(path.changes) / path.gradient_norm
    return Reading(QUANTITY.name, site or Site("", "weight"), step, value, QUANTITY.unit, path.n)
