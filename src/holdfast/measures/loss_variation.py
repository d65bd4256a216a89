"""Loss variation: how much the loss of one batch varies over the steps that its gradient proposes.

    max_s L(θ − s g) − min_s L(θ − s g),    s from ½ η to 4 η

What it sees:
    The spread of the loss among points on the line along the negative gradient, on the batch that gave the gradient.
    On a smooth, nearly linear stretch it is about 3½ η ‖g‖²; above that the loss rises again or jumps within reach.

Why it matters:
    A loss that varies widely within reach of a step makes the step's success a matter of its exact length.

When it is wrong:
    It is one batch and one line, in the parameters' own scale: a network whose weights are scaled up under a
    normaliser has another gradient and so another line. Between models compare at equal loss as well as at equal step
    (`compare_landscapes`): the loss itself sets the scale. It falls for a smaller step size without the landscape
    being any smoother. Normalisers that use batch statistics have another landscape in training than in evaluation.

Example:
    >>> path = Descent(loss=2.0, gradient_norm=2.0, lengths=(0.5, 1.0), losses=(1.25, 1.0), changes=(0.5, 1.0), n=64)
    >>> loss_variation(path).value
    0.25

References:
    Santurkar et al. 2018, "How does batch normalization help optimization?", section 3.1 and figure 4a.
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.descent import Descent

QUANTITY = Quantity(
    "loss-variation",
    "loss variation along the gradient",
    Unit.LOSS,
    "higher is worse",
    cost="many forwards and backwards",
    logarithmic=True,
)


def loss_variation(path: Descent, *, site: Site | None = None, step: int = 0) -> Reading | None:
    """Greatest less smallest loss along a line.

    Args:
        path: losses and gradients along it.
        site: where to note it; the model's root when `None`.
        step: the step.

    Returns:
        The spread, infinite where the loss overflows; `None` without a finite gradient to follow.
    """
    if not path.usable:
        return None
    value = max(path.losses) - min(path.losses) if min(path.losses) < float("inf") else float("inf")
    return Reading(QUANTITY.name, site or Site("", "weight"), step, value, QUANTITY.unit, path.n)
