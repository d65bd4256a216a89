"""Stability ratio: the largest curvature over that at which this optimiser becomes unstable.

    λ_max / threshold;    gradient descent 2/η, heavy ball 2(1+μ)/η, Nesterov 2(1+μ)/((1+2μ)η),
    Adam λ_max(P^−½ H P^−½) / (2(1+β₁)/((1−β₁)η)),  P = √v̂ + ε

What it sees:
    How far training is from the edge of stability: below 1 a step along the sharpest direction comes nearer to the
    bottom of the valley on a quadratic, above 1 it oscillates with growing amplitude.

Why it matters:
    The learning rate can be raised where this is far below 1. Held at 1 over many steps, the rate decides the
    sharpness and no longer the other way round: full-batch training lives there, and its loss still falls.

When it is wrong:
    The threshold is that of a quadratic. A network above 1 for some steps need not diverge: curvature falls along the
    oscillation and training comes back. Small batches stay below 1 by an amount that depends on the gradient's noise.
    For Adam the second moments are taken as frozen, as the last step left them: right where they change slowly.
    Numerical interval only; see sharpness for what a batch's Hessian is and is not.

Example:
    >>> largest = Reading("sharpness", Site("", "weight"), 9, 18.0, "1 / learning rate", 64, interval=(18.0, 18.5))
    >>> reading = stability_ratio(largest, 20.0)               # gradient descent with η = 0.1
    >>> reading.value, reading.interval
    (0.9, (0.9, 0.925))

References:
    Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of stability".
    Cohen et al. 2022, "Adaptive gradient methods at the edge of stability".
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit

QUANTITY = Quantity(
    "stability-ratio",
    "sharpness over the stability threshold",
    Unit.RATIO,
    "higher is worse",
    bounds=(float("-inf"), float("inf")),
    cost="many forwards and backwards",
)


def stability_ratio(
    sharpness: Reading, threshold: float, *, site: Site | None = None, step: int | None = None
) -> Reading | None:
    """Sharpness over an optimiser's threshold.

    Args:
        sharpness: largest eigenvalue of the (preconditioned) Hessian.
        threshold: above 0.
        site: where to note it; that of the sharpness when `None`.
        step: the step; that of the sharpness when `None`.

    Returns:
        The ratio with the sharpness' interval; `None` without a threshold.
    """
    if not 0 < threshold < float("inf"):
        return None
    interval = None if sharpness.interval is None else tuple(end / threshold for end in sharpness.interval)
    return Reading(
        QUANTITY.name,
        site or sharpness.site,
        sharpness.step if step is None else step,
        sharpness.value / threshold,
        QUANTITY.unit,
        sharpness.n,
        interval=None if interval is None else (interval[0], interval[1]),
    )
