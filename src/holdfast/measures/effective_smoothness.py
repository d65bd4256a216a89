"""Effective smoothness β: how fast the gradient changes along itself, at most.

    β = max_s ‖∇L(θ) − ∇L(θ − s g)‖ / (s ‖g‖),    s from ½ η to 4 η

What it sees:
    The Lipschitz constant of the gradient as far as one line shows it. On a quadratic it is ‖H g‖/‖g‖ at every step
    size: no more than the largest curvature, and less where the gradient lies along flat directions.

Why it matters:
    Descent along this line is safe for steps below 2/β. What normalisers do for optimisation shows here more directly
    than in any drift of activations.

When it is wrong:
    The published figure is a maximum over the points tried, a lower bound of the constant: finer grids find more. A
    kink (ReLU) near the start counts in full over a short way, so that the smallest step decides. One line on one
    batch: see sharpness for the largest curvature of all directions. Training and evaluation mode differ under batch
    statistics. In single precision, steps too short to change the gradient by 1e-5 of itself show rounding.

Example:
    >>> path = Descent(loss=2.0, gradient_norm=2.0, lengths=(0.5, 1.0), losses=(1.25, 1.0), changes=(0.5, 1.0), n=64)
    >>> effective_smoothness(path).value
    1.0

References:
    Santurkar et al. 2018, "How does batch normalization help optimization?", section 3.1 and figure 4c.
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.descent import Descent

QUANTITY = Quantity(
    "effective-smoothness",
    "effective smoothness β",
    Unit.CURVATURE,
    "higher is worse",
    cost="many forwards and backwards",
    logarithmic=True,
)


def effective_smoothness(path: Descent, *, site: Site | None = None, step: int = 0) -> Reading | None:
    """Greatest change of the gradient per way along a line.

    Args:
        path: losses and gradients along it.
        site: where to note it; the model's root when `None`.
        step: the step.

    Returns:
        β, infinite where the gradient overflows; `None` without a finite gradient to follow.
    """
    if not path.usable:
        return None
    return Reading(QUANTITY.name, site or Site("", "weight"), step, max(path.slopes), QUANTITY.unit, path.n)
