"""Train–eval gap: how far a batch normaliser's output in evaluation lies from its output in training, on one batch.

    gap = √ mean_j ( δ_j² + (a_j − 1)² − noise_j² )

What it sees:
    δ_j = (batch mean − running mean) / running SD, a_j = batch SD / running SD, of channel j. Normalised with the
    running averages, a value that training turns into x̂ becomes a_j·x̂ + δ_j: the gap is the root mean square of that
    difference, in SD of the output before the layer's gain. The running averages are read before the batch moves
    them. What the noise of *this* batch's statistics adds is taken off: s²/n for the mean, and for a_j − 1 = ρ/(1 + a)
    the error of ρ = a² − 1. Averaged over channels first, clipped at 0 last. What is left is how far the running
    averages lie from those of the data: they lag behind, come from other data, or are noisy themselves.

Why it matters:
    The network is trained with one function and used with another.

When it is wrong:
    The floor is the 95th percentile for channels that all move together, √(t² − 1) noises with Student's t of n − 1
    degrees of freedom: it holds for any dependence between normal channels and is too high for most, by far on batches
    of two or three. Of large inputs a part is read. Batches drawn from a part of the data (one class, one site) differ
    from running averages that are right.

Example:
    >>> import numpy as np, torch
    >>> from holdfast.stats.batch_statistics import Running
    >>> half = torch.tensor([-1.0, 1.0]).repeat(500).reshape(-1, 1, 1)
    >>> running = Running(np.array([3.0]), np.array([1.0]), 0.0, 0.0)
    >>> reading = train_eval_gap(BatchStatistics.of(half, running=running), site=Site("norm", "input"), step=1)
    >>> round(reading.value, 2), reading.above_noise
    (3.0, True)

References:
    Ioffe 2017, "Batch renormalization" (models whose activations in training and inference depend on different
    statistics). Singh & Shrivastava 2019, "EvalNorm: estimating batch normalization statistics for evaluation".
"""

from __future__ import annotations

import math

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.student import student_975
from holdfast.stats.batch_statistics import BatchStatistics, functional_square, scale_weight

QUANTITY = Quantity(
    "train-eval-gap",
    "train–eval gap of a normaliser",
    Unit.REFERENCE_SD,
    "higher is worse",
    cost="one pass over a sample",
    logarithmic=True,
)


def train_eval_gap(current: BatchStatistics, *, site: Site, step: int) -> Reading | None:
    """Root mean square difference of a normaliser's output in training and in evaluation, beyond the batch's noise.

    Args:
        current: the batch as the layer saw it, with the running averages before it.
        site: where.
        step: the step.

    Returns:
        Value and noise floor; n is the number of samples read. `None` where the layer normalises the same way in both
        modes (it keeps no running averages, or uses them in training too).
    """
    if current.running is None or not current.own:
        return None
    stretch = current.stretch
    noise = current.shift_error + current.stretch_error * scale_weight(stretch)
    expected = float(noise.mean())
    square = float(functional_square(current.shift, stretch).mean()) - expected
    if not math.isfinite(square):
        return None
    floor = math.sqrt((student_975(current.read - 1) ** 2 - 1) * expected)
    value = math.sqrt(max(square, 0.0))
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, current.read, noise_floor=floor)
