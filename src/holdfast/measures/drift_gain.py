"""Drift gain: whether a module passes its input's drift on, damps it or enlarges it.

    gain = parameter drift at the output / parameter drift at the input

What it sees:
    Both drifts in SDs of their own site, so 1 means "as much of its spread as before". The module's own update is
    part of the output's drift.

Why it matters:
    Gains above 1 multiply through depth: a small update at the bottom becomes a large shift at the top
    (drift-amplification).

When it is wrong:
    Where one of the two drifts is within noise there is no figure; a module whose input does not move (the first)
    has none. The interval takes the two drifts as independent; they come from the same samples and usually move
    together, so that it is rather too wide.

Example:
    >>> into = Reading("parameter-drift", Site("fc", "input"), 3, 0.1, "reference SD", 64, 0.01, (0.09, 0.11), lag=1)
    >>> out = Reading("parameter-drift", Site("fc", "output"), 3, 0.2, "reference SD", 64, 0.01, (0.18, 0.22), lag=1)
    >>> reading = drift_gain(into, out)
    >>> reading.value, str(reading.site), reading.lag
    (2.0, 'net/fc:output#0@train', 1)

References:
    Huang & Yu 2020, "An internal covariate shift bounding algorithm for deep neural networks" (how shift
    accumulates from layer to layer).
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.ratio import ratio

QUANTITY = Quantity(
    "drift-gain", "drift gain", Unit.RATIO, "higher is worse", cost="one extra forward", logarithmic=True
)


def drift_gain(
    reference: Reading, current: Reading, *, site: Site | None = None, step: int | None = None, lag: int | None = None
) -> Reading | None:
    """Output drift over input drift of one module.

    Args:
        reference: parameter drift at the module's input.
        current: parameter drift at its output, over the same lag.
        site: where; `None` takes the output's.
        step: the step; `None` takes the output's.
        lag: optimiser steps between the two states; `None` takes the output's.

    Returns:
        The gain, with an interval where both drifts have one; `None` when either drift is within noise.
    """
    if not (reference.above_noise and current.above_noise and reference.value > 0):
        return None
    value, interval = ratio(current, reference)
    return Reading(
        QUANTITY.name,
        current.site if site is None else site,
        current.step if step is None else step,
        value,
        QUANTITY.unit,
        min(reference.n, current.n),
        interval=interval,
        lag=current.lag if lag is None else lag,
    )
