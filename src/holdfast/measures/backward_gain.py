"""Backward gain: whether a layer passes the gradient back, damps it or enlarges it.

    gain_l = ‖∂L/∂h_{l−1}‖ / ‖∂L/∂h_l‖

What it sees:
    The gradient norm at what feeds a layer over the gradient norm at the layer's own output, on one batch.

Why it matters:
    Gains multiply on the way back: ten layers of 0.5 leave a thousandth for the first layer, ten of 2 enlarge
    thousandfold. With the right initialisation each is near 1.

When it is wrong:
    Where a layer's input feeds other layers too (a residual stream), the gradient there is the sum over all of them,
    and the ratio is not the layer's alone. Layers that change the number of elements change the norm for that alone.
    From sampled elements it is an estimate without an interval.

Example:
    >>> own = Reading("gradient-norm", Site("fc2", "grad_output"), 3, 2.0, "L2 norm", 64)
    >>> source = Reading("gradient-norm", Site("fc1", "grad_output"), 3, 1.0, "L2 norm", 64)
    >>> reading = backward_gain(source, own)
    >>> reading.value, str(reading.site)
    (0.5, 'net/fc2:grad_output#0@train')

References:
    Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", section 4.2.
    He et al. 2015, "Delving deep into rectifiers", section 2.2 (the backward case).
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.ratio import ratio

QUANTITY = Quantity("backward-gain", "backward gain", Unit.RATIO, "nearer one is better", logarithmic=True)


def backward_gain(
    source: Reading, own: Reading, *, site: Site | None = None, step: int | None = None
) -> Reading | None:
    """Gradient norm at a layer's source over that at its own output.

    Args:
        source: gradient norm at the output of what feeds the layer, ‖∂L/∂h_{l−1}‖: where its backward ends.
        own: gradient norm at the layer's own output, ‖∂L/∂h_l‖: where its backward begins.
        site: where; `None` takes `own`'s.
        step: the step; `None` takes `own`'s.

    Returns:
        The gain, with an interval where both norms have one; `None` when a norm is not finite, or when no gradient
        arrives at the layer's output.
    """
    if not (own.above_noise and source.above_noise and own.value > 0):
        return None
    value, interval = ratio(source, own)
    return Reading(
        QUANTITY.name,
        own.site if site is None else site,
        own.step if step is None else step,
        value,
        QUANTITY.unit,
        min(own.n, source.n),
        interval=interval,
    )
