"""Running lag: how far a normaliser's running averages lie from those of the data, in the same direction step by step.

    lag = √ mean_j ( δ̄_j² + (ā_j − 1)² − noise_j² )

What it sees:
    δ_tj = (batch mean − running mean) / running SD and ρ_tj = batch variance / running variance − 1 of channel j at
    each of W observed steps, with their signs; δ̄_j, ρ̄_j their means over the steps and ā_j = √(1 + ρ̄_j). What only
    scatters from batch to batch cancels; what stays is systematic. noise_j² is what scatter leaves in a mean,
    s²_j (1/W + r), where r = m/(2 − m) is the noise of the running average itself. The unit is the SD of the layer's
    output before its gain, as in train-eval-gap; the running averages are read before each batch moves them.

Why it matters:
    A systematic difference is not the batch's fault: the running averages are out of date, and computing them anew
    repairs that.

When it is wrong:
    A layer whose input drifts quickly is always somewhat ahead of its running averages: one of momentum m remembers
    about 1/m steps. The floor is the 95th percentile for channels that all move together, √(t² − 1) noises with
    Student's t of W − 1 degrees of freedom, with steps taken as independent: too high rather than too low.

Example:
    >>> import torch
    >>> from holdfast.stats.batch_statistics import Running
    >>> pair, running = torch.tensor([[[1.0]], [[3.0]]]), Running(np.zeros(1), np.full(1, 2.0), 0.0, 0.0)
    >>> step = BatchStatistics.of(pair, running=running)
    >>> round(running_lag([step] * 5, site=Site("norm", "input"), step=5).value, 6)  # 2 / √2
    1.414214

References:
    Wu & Johnson 2021, "Rethinking 'batch' in BatchNorm", section 3 (running averages lag; precise statistics do not).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.student import student_975
from holdfast.stats.batch_statistics import BatchStatistics, functional_square, scale_weight

QUANTITY = Quantity(
    "running-lag",
    "lag of running averages",
    Unit.REFERENCE_SD,
    "higher is worse",
    cost="one pass over a sample",
    logarithmic=True,
)


def running_lag(window: Sequence[BatchStatistics], *, site: Site, step: int) -> Reading | None:
    """Systematic difference between a normaliser's running averages and the batches it saw.

    Args:
        window: the same layer at several steps, each with the running averages before it.
        site: where.
        step: the last of the steps.

    Returns:
        Value and noise floor; n is the number of samples read in all. `None` for fewer than two steps, and for a layer
        without running averages.
    """
    if len(window) < 2 or any(each.running is None for each in window):
        return None
    shifts = np.stack([each.shift for each in window])
    stretches = np.stack([each.stretch for each in window])
    stretch = stretches.mean(0)
    left = 1 / len(window) + max(each.running.noise for each in window if each.running is not None)
    noise = left * (shifts.var(0, ddof=1) + stretches.var(0, ddof=1) * scale_weight(stretch))
    expected = float(noise.mean())
    square = float(functional_square(shifts.mean(0), stretch).mean()) - expected
    if not math.isfinite(square):
        return None
    return Reading(
        QUANTITY.name,
        site,
        step,
        math.sqrt(max(square, 0.0)),
        QUANTITY.unit,
        sum(each.read for each in window),
        noise_floor=math.sqrt((student_975(len(window) - 1) ** 2 - 1) * expected),
    )
