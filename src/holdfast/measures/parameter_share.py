"""Parameter share: how much of the difference between two batches the parameters account for.

    share = D_par² / (D_par² + D_samp²)

What it sees:
    Parameter-drift squared over the sum of parameter-drift squared and sampling-drift squared, both at one site.
    The lag is the parameter drift's; sampling drift has none (it is of unchanged parameters). Near 1, what a naive
    monitor plots over that lag is real internal covariate shift; near 0, it is the batch.

Why it matters:
    A layer sees both. Where the share is small, lowering the learning rate or adding a normaliser against "shift"
    treats what a larger batch would remove.

When it is wrong:
    It depends on the batch size (sampling drift shrinks as 1/√batch) and on the lag: quote both. The interval takes
    the two readings as independent, and is too wide rather than too narrow where they are not.

Example:
    >>> site = Site("fc", "input")
    >>> moved = Reading("parameter-drift", site, 9, 0.3, "reference SD", 64, lag=3)
    >>> scatter = Reading("sampling-drift", site, 9, 0.4, "reference SD", 64, lag=3)
    >>> round(parameter_share(moved, scatter).value, 9)       # 0.09 / 0.25
    0.36

References:
    Ioffe & Szegedy 2015, "Batch normalization", section 2.
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.ratio import ratio

QUANTITY = Quantity("parameter-share", "parameter share", Unit.FRACTION, "neither", bounds=(0.0, 1.0))


def parameter_share(
    parameter: Reading,
    sampling: Reading,
    *,
    site: Site | None = None,
    step: int | None = None,
    lag: int | None = None,
) -> Reading | None:
    """The part of the squared difference between two batches that moved parameters account for.

    Args:
        parameter: parameter drift of a site.
        sampling: sampling drift of the same site.
        site: where; `None` takes it from `sampling`.
        step: the step; `None` takes it from `parameter`.
        lag: optimiser steps between the two states; `None` takes it from `parameter`.

    Returns:
        The share, its interval where both readings have one, and its floor: the share that parameter drift at its
        own floor would have. `None` when both drifts are zero or one is not finite.
    """
    share = _share(parameter.value, sampling.value)
    if share is None:
        return None
    interval = None
    if sampling.value > 0 and parameter.interval is not None and sampling.interval is not None:
        ends = ratio(parameter, sampling)[1] if parameter.value > 0 else (0.0, parameter.interval[1] / sampling.value)
        interval = None if ends is None else (_of_ratio(ends[0]), _of_ratio(ends[1]))
    floor = None if parameter.noise_floor is None else _share(parameter.noise_floor, sampling.value)
    return Reading(
        QUANTITY.name,
        sampling.site if site is None else site,
        parameter.step if step is None else step,
        share,
        QUANTITY.unit,
        min(parameter.n, sampling.n),
        noise_floor=floor,
        interval=interval,
        lag=parameter.lag if lag is None else lag,
    )


def _share(parameter: float, sampling: float) -> float | None:
    total = parameter**2 + sampling**2
    # Not-a-number and infinity fail this comparison too.
    return parameter**2 / total if 0.0 < total < float("inf") else None


def _of_ratio(value: float) -> float:
    """r² / (1 + r²), without overflow."""
    return 1.0 - 1.0 / (1.0 + value * value)
