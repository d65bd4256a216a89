"""Drift amplification: whether drift grows through depth.

    slope of ln(parameter drift) over depth, in nats per layer

What it sees:
    The trend of parameter drift from the first observed layer to the last, each in SDs of its own site. Above zero
    each layer adds to what it receives; 0.1 over ten layers is a factor of e.

Why it matters:
    In a network that amplifies drift, a learning rate that is right for the first layers is too high for the last
    ones. Normalisers work by keeping this slope near zero.

When it is wrong:
    The order of execution stands for depth: in a branching network neighbours need not feed each other. Layers within
    noise are left out and keep their place; where only the strongest are above noise the slope is biased towards
    zero. The interval takes layers' departures from the line as independent and equal; a step (one layer far off) is
    not a slope: look at drift-gain layer by layer. Below three layers there is no figure.

Example:
    >>> drifts = [Reading("parameter-drift", Site(f"fc{k}", "input"), 3, 0.1 * 2**k, "reference SD", 64, lag=1)
    ...           for k in range(4)]
    >>> reading = amplification(drifts, site=Site("", "output"), step=3, lag=1)
    >>> round(reading.value, 6), reading.n                    # ln 2 a layer, four layers
    (0.693147, 4)

References:
    Poole et al. 2016, "Exponential expressivity in deep neural networks through transient chaos" (perturbations grow
    or shrink exponentially with depth).
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.depth_slope import depth_slope

QUANTITY = Quantity(
    "drift-amplification",
    "drift amplification",
    Unit.PER_LAYER,
    "higher is worse",
    bounds=(float("-inf"), float("inf")),
    cost="one extra forward",
)


def amplification(drifts: Sequence[Reading | None], *, site: Site, step: int, lag: int | None = None) -> Reading | None:
    """Slope of ln(parameter drift) over depth.

    Args:
        drifts: parameter drift of each layer, in the order of execution; `None` keeps the place of a layer without.
        site: where to note it, usually the model's root or its last layer.
        step: the step.
        lag: optimiser steps between the two states; `None` takes that of the first drift.

    Returns:
        Slope in nats per layer with a 95 % interval, n the number of layers; `None` when fewer than three layers
        are above noise.
    """
    fit = depth_slope([each.value if each is not None and each.above_noise else None for each in drifts])
    if fit is None:
        return None
    slope, interval, layers = fit
    if lag is None:
        lag = next((each.lag for each in drifts if each is not None), None)
    return Reading(QUANTITY.name, site, step, slope, QUANTITY.unit, layers, interval=interval, lag=lag)
