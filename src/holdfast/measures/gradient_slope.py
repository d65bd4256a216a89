"""Gradient slope: whether gradients vanish or explode on their way back.

    slope of ln ‖∂L/∂h_l‖ over depth l, in nats per layer

What it sees:
    The trend of the gradient norm over the layers in the order of execution. Above zero the gradient is larger near
    the output: it *vanishes* on its way back. Below zero it explodes. ±0.1 over ten layers is a factor of e.

Why it matters:
    Layers that receive a gradient a thousand times smaller than others do not learn at the same learning rate.

When it is wrong:
    Norms of tensors of different sizes differ for that alone: give figures of equal layers, or per-element ones. Under
    normalisers and adaptive optimisers a slope in the gradients of *weights* need not slow anything. The order of
    execution stands for depth. The interval takes the layers' departures from the line as independent and equal.
    Below three layers there is no figure.

Example:
    >>> norms = [Reading("gradient-norm", Site(f"fc{k}", "grad_output"), 3, 10.0**k, "L2 norm", 64) for k in range(5)]
    >>> reading = gradient_slope(norms, site=Site("", "grad_output"), step=3)
    >>> round(reading.value, 6), reading.n                    # ln 10 a layer
    (2.302585, 5)

References:
    Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.depth_slope import depth_slope

QUANTITY = Quantity(
    "gradient-slope",
    "slope of the gradient over depth",
    Unit.PER_LAYER,
    "neither",
    bounds=(float("-inf"), float("inf")),
)


def gradient_slope(norms: Sequence[Reading | None], *, site: Site, step: int) -> Reading | None:
    """Slope of ln(gradient norm) over depth.

    Args:
        norms: gradient norm of each layer, in the order of execution; `None` keeps the place of a layer without.
        site: where to note it, usually the model's root.
        step: the step.

    Returns:
        Slope in nats per layer with a 95 % interval, n the number of layers; `None` when fewer than three layers
        have a gradient that is finite and not zero.
    """
    fit = depth_slope([None if each is None else each.value for each in norms])
    if fit is None:
        return None
    slope, interval, layers = fit
    return Reading(QUANTITY.name, site, step, slope, QUANTITY.unit, layers, interval=interval)
