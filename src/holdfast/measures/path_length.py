"""Path length: how far a site's features travelled over many steps, every step counted.

    path length = L · Σ_k drift_k / Σ_k lag_k        over the lag-1 drifts seen within L steps

What it sees:
    The sum of the parameter drifts from step to step. Where every step was seen it is that sum; at a cadence it is the
    mean drift of the steps seen times L, and the interval includes that the other steps were not. Cadence and share of
    steps seen are stated by `journeys`, beside the figure.

Why it matters:
    Against the net displacement it tells jitter from journey: see straightness. A layer that travels far and gets
    nowhere costs learning as much as one that leaves.

When it is wrong:
    Each leg is in SDs that its features had at the leg's beginning, so that the sum follows a growing signal's own
    scale. A leg's drift is debiased but cannot be negative: where legs are near their floor their sum is too large,
    and the floor of the sum is that of legs that are all at their floors (they come from the same samples, so that
    their noise does not average out). The same holds for the interval's ends. Steps seen at a cadence are taken for a
    random choice: a drift that falls within the window is caught well, one with the cadence's own period is not. It
    needs lag-1 readings of the fixed probe; one batch after another (the step probe) makes no path.

Example:
    >>> site = Site("fc", "input", phase="probe")
    >>> legs = [Reading("parameter-drift", site, step, 0.1, "reference SD", 64, 0.02, (0.08, 0.12), lag=1)
    ...         for step in (5, 10)]
    >>> reading = path_length(legs, lag=10)                   # two of ten steps seen, both of 0.1 SD
    >>> reading.value, reading.lag, reading.noise_floor
    (1.0, 10, 0.2)

References:
    Raghu et al. 2017, "On the expressive power of deep neural networks" (trajectory length, there over inputs).
    Cochran 1977, "Sampling techniques", section 2.6 (the part of the variance that is left when a share was seen).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from holdfast.core.errors import StatisticError
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.student import student_975

QUANTITY = Quantity(
    "path-length", "path length", Unit.REFERENCE_SD, "higher is worse", cost="one extra forward", logarithmic=True
)


def path_length(
    legs: Sequence[Reading], *, lag: int, site: Site | None = None, step: int | None = None
) -> Reading | None:
    """How far a site travelled within `lag` steps, from the drifts of the single steps seen.

    Args:
        legs: parameter drifts of one site over single steps (or few), which do not overlap, all within the `lag` steps.
        lag: over how many optimiser steps the path goes.
        site: where; `None` takes that of the legs.
        step: the step at which the path ends; `None` takes the last leg's.

    Returns:
        In reference SD, with interval and floor where all legs have them; n is the samples of the smallest leg. `None`
        without legs, when one is not finite, or when a single one would have to stand for steps that were not seen.

    Raises:
        StatisticError: the legs cover more than `lag` steps.
    """
    seen = sum(leg.lag or 0 for leg in legs)
    if seen > lag:
        raise StatisticError(f"legs within {lag} steps", f"legs over {seen}", "leave out legs that overlap")
    if not seen or not all(math.isfinite(leg.value) for leg in legs) or (len(legs) == 1 and seen < lag):
        return None
    values, steps = np.array([(leg.value, leg.lag) for leg in legs], np.float64).T
    scale = lag / seen
    value = scale * float(values.sum())
    unseen = 0.0
    if seen < lag:
        spread = float((values / steps).std(ddof=1))
        unseen = student_975(len(legs) - 1) * spread / math.sqrt(len(legs)) * math.sqrt(1 - seen / lag) * lag
    floors = [leg.noise_floor for leg in legs if leg.noise_floor is not None]
    intervals = [leg.interval for leg in legs if leg.interval is not None]
    interval = None
    if len(intervals) == len(legs):
        low, high = (scale * sum(ends) for ends in zip(*intervals, strict=True))
        interval = max(0.0, value - math.hypot(value - low, unseen)), value + math.hypot(high - value, unseen)
    return Reading(
        QUANTITY.name,
        legs[0].site if site is None else site,
        max(leg.step for leg in legs) if step is None else step,
        value,
        QUANTITY.unit,
        min(leg.n for leg in legs),
        noise_floor=scale * sum(floors) if len(floors) == len(legs) else None,
        interval=interval,
        lag=lag,
    )
