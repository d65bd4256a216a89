"""Gradient signal-to-noise ratio: how far a batch's gradient stands out of its own sampling noise.

    g_1 … g_K gradients of K equal parts of a batch, ḡ their mean
    signal² = mean over pairs i ≠ k of g_i · g_k          (unbiased for ‖E g‖²; ‖ḡ‖² would count the noise too)
    noise²  = (mean_i ‖g_i‖² − signal²) / K               (of ḡ)
    SNR     = √(max(0, signal²) / noise²)

What it sees:
    Whether parts of a batch agree on where to go, for each parameter and for the whole model.

Why it matters:
    Far above 1 a larger batch buys little and a smaller one would do; far below, a step is mostly noise, and a larger
    batch or a lower rate buys progress. B / SNR² is the batch size B at which the two are equal (the simple noise
    scale). Layers whose gradient is within noise do not learn, however large its norm.

When it is wrong:
    The parts must be independent draws: sorted or duplicated samples are not. BatchNorm takes its statistics from each
    part, which adds noise that the whole batch does not have. As training converges the signal falls and the noise
    stays: a falling SNR is the usual course. The floor is the 95th percentile with the signs of the parts flipped, in
    every way; fewer than six parts cannot rise above it. There is no interval. Gradients of successive steps can stand
    for the parts; then movement of the parameters counts as noise, and what momentum would average as signal.

Example:
    >>> import torch
    >>> noise = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    >>> reading = gradient_snr(list(noise + 1.0), site=Site("fc", "weight_grad", leaf="weight"), step=1)
    >>> round(reading.value, 1), reading.above_noise                                   # √(8 · 1² / 1²) = 2.8
    (3.1, True)

References:
    McCandlish, Kaplan & Amodei 2018, "An empirical model of large-batch training", appendix A (the noise scale).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray
from torch import Tensor

from holdfast.core.errors import InputError, StatisticError
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.live.labelled_batch import LabelledBatch, LossFn
from holdfast.live.moment import Moment
from holdfast.live.objective import Objective
from holdfast.measures.resampling import floor_of, signs
from holdfast.measures.weights import weight_site

QUANTITY = Quantity(
    "gradient-snr",
    "gradient signal to noise",
    Unit.RATIO,
    "lower is worse",
    cost="one extra forward and backward",
    logarithmic=True,
)

PARTS = 8
"""A batch is cut into so many: the floor needs six, and each part must stay a batch."""

_TOO_FEW = "give a larger batch, or gradients of several steps to measures.gradient_snr"


@torch.no_grad()
def gradient_snr(gradients: Sequence[Tensor], *, site: Site, step: int, seed: int = 0) -> Reading | None:
    """Signal-to-noise ratio of the mean of several gradients of one parameter.

    Args:
        gradients: of equal parts of a batch, or of several steps.
        site: where.
        step: the step.
        seed: of the private generator behind the floor, of more than eight gradients.

    Returns:
        The ratio with its floor, n the number of gradients; `None` where all are zero or one is not finite.

    Raises:
        StatisticError: fewer than two gradients.
        InputError: their shapes differ.
    """
    if len(gradients) < 2:
        raise StatisticError(
            "two gradients or more", f"{len(gradients)}", "give one for each part of a batch, six or more for a floor"
        )
    if len({tuple(each.shape) for each in gradients}) > 1:
        raise InputError(
            "gradients of one parameter",
            f"shapes {', '.join(str(tuple(each.shape)) for each in gradients)}",
            "give gradients of one parameter in each call",
        )
    return _reading(_gram(gradients), site, step, seed)


def gradient_snrs(
    model: torch.nn.Module,
    loss_fn: LossFn | None,
    batch: Any,
    *,
    step: int = 0,
    stream: str = "net",
) -> list[Reading]:
    """Signal-to-noise ratio of a batch's gradient: of the whole model first, then of each parameter.

    The batch is cut into eight parts in the order of its samples; a remainder is left out. The model, its gradients and
    all random generators stay as they were.

    Args:
        model: the model.
        loss_fn: `(output, targets)` → a scalar, a mean over samples.
        batch: `(inputs, targets)`, samples on axis 0.
        step: to note with the readings.
        stream: name of the model.

    Returns:
        One reading for the model and one for each parameter that has a gradient.

    Raises:
        InputError: no loss, a batch of fewer than 16 samples, or a model that gives another loss each time.
    """
    grams: dict[str, Float64[ndarray, "parts parts"]] = {}
    columns: list[tuple[Tensor, ...]] = []
    names: tuple[str, ...] = ()
    for part in LabelledBatch.of(batch, loss_fn).parts(PARTS, _TOO_FEW):
        objective = Objective(model, loss_fn, (part.inputs, part.targets))
        names = objective.names
        columns.append(objective.at().gradient)
    for name, gradients in zip(names, zip(*columns, strict=True), strict=True):
        grams[name] = _gram(gradients)
    whole = np.sum(list(grams.values()), axis=0)
    found = [_reading(whole, Site("", "weight_grad", stream), step, 0)]
    found += [_reading(gram, weight_site(name, "weight_grad", stream), step, 0) for name, gram in grams.items()]
    return [reading for reading in found if reading is not None]


def take(moment: Moment) -> list[Reading]:
    """Signal-to-noise ratio of the gradient of a moment's batch, at the parameters after the step.

    Args:
        moment: with a batch and its loss.

    Returns:
        As `gradient_snrs`.

    Raises:
        InputError: see there.
    """
    return gradient_snrs(moment.model, moment.loss_fn, moment.batch, step=moment.step, stream=moment.stream)


def _gram(gradients: Sequence[Tensor]) -> Float64[ndarray, "parts parts"]:
    rows = torch.stack([each.detach().reshape(-1) for each in gradients]).double()
    return np.asarray((rows @ rows.T).cpu().numpy())


def _reading(gram: Float64[ndarray, "parts parts"], site: Site, step: int, seed: int) -> Reading | None:
    own, parts = float(np.trace(gram)), len(gram)
    if not 0.0 < own < math.inf or not np.isfinite(gram).all():
        return None
    pairs, power = parts * (parts - 1), own / parts

    def ratio(signal: float) -> float:
        noise = (power - signal) / parts
        return math.sqrt(max(0.0, signal) / noise) if noise > 1e-12 * power else math.inf

    flips = _all_flips(parts) if parts <= PARTS else signs(parts, seed)
    floor = floor_of((np.einsum("bi,ij,bj->b", flips, gram, flips) - own) / pairs)
    value = ratio((float(gram.sum()) - own) / pairs)
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, parts, noise_floor=ratio(floor))


@lru_cache(maxsize=PARTS)
def _all_flips(parts: int) -> Float64[ndarray, "flips parts"]:
    """Every way to flip signs but none and all, up to the sign of the whole: of few parts random ones repeat."""
    rows = np.array(list(itertools.product([1.0, -1.0], repeat=parts - 1))[1:]).reshape(-1, parts - 1)
    return np.concatenate([np.ones((len(rows), 1)), rows], axis=1)
