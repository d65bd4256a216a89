"""Spread: how much of a signal tells the samples apart.

    spread_j = σ_j / √(mean_j² + σ_j²)      per channel, over samples and positions
    spread   = the greater of the pooled ratio √(Σσ²/Σ(mean²+σ²)) and the median channel's

1 for a signal that varies about zero; 0 for one that is the same for every sample. The greater of the two is taken
because a few channels with a huge constant (as transformers have) leave the others' information intact, and a few
informative ones among many constant ones carry it too.
"""

from __future__ import annotations

import math

import numpy as np

from holdfast.core.protocols import History
from holdfast.core.site import Site
from holdfast.stats.channels import ChannelMoments

DEAD_SPREAD = 2.0**-10
"""Below it the samples differ by less than two units in the last place of float16 (11 significant bits), and less than
half a unit of bfloat16 (8 bits): 2⁻¹⁰ ≈ 0.001. Seen: healthy networks ≥ 0.3 at every layer; ten sigmoid layers of
PyTorch's default initialisation 3e-4 at the fifth and 2e-8 at the last."""

LEAST_VALUES = 8
"""Values a channel, below which its SD over samples says little: relative error 1/√(2·8) = 25 %."""


def spread(moments: ChannelMoments) -> float:
    """The part of a signal that differs between samples, between 0 and 1.

    Args:
        moments: of one site.

    Returns:
        The ratio; NaN without a channel that has data and is not zero throughout.

    Example:
        >>> spread(ChannelMoments(*(np.array([each]) for each in (8.0, 3.0, 8 * 16.0, 0.0))))
        0.8
    """
    variance, square = moments.variance, moments.variance + moments.mean**2
    usable = (moments.count >= LEAST_VALUES) & (square > 0)
    if not usable.any():
        return math.nan
    pooled = variance[usable].sum() / square[usable].sum()
    return float(np.sqrt(max(pooled, np.median(variance[usable] / square[usable]))))


def spreads(history: History, stream: str) -> dict[Site, list[tuple[int, float]]]:
    """`(step, spread)` at the input of every observed module.

    Args:
        history: of a run.
        stream: which model.

    Returns:
        By site, in the order of execution; sites without a figure left out.
    """
    found = {}
    for site in history.sites(port="input", phase="train", stream=stream):
        figures = [
            (step, spread(statistic))
            for step, statistic in history.channels(site)
            if isinstance(statistic, ChannelMoments)
        ]
        figures = [(step, value) for step, value in figures if math.isfinite(value)]
        if figures:
            found[site] = figures
    return found


def dead_modules(history: History, stream: str, threshold: float = DEAD_SPREAD) -> dict[str, float]:
    """Modules at whose input the samples cannot be told apart: no drift in reference SD is to be believed there.

    Args:
        history: of a run.
        stream: which model.
        threshold: of the median spread over the observed steps.

    Returns:
        Path → median spread, in the order of execution. A module where more than half of the features are collapsed
        at most observed steps is among them; its spread is NaN where no channel statistics were kept.
    """
    medians = {
        site.module: float(np.median([value for _, value in figures]))
        for site, figures in spreads(history, stream).items()
    }
    dead = {module: value for module, value in medians.items() if value < threshold}
    collapsed: dict[str, list[float]] = {}
    for reading in history.readings("collapsed-features"):
        if reading.site.stream == stream and reading.site.phase == "train" and math.isfinite(reading.value):
            collapsed.setdefault(reading.site.module, []).append(reading.value)
    for module, values in collapsed.items():
        if float(np.median(values)) > 0.5:
            dead.setdefault(module, medians.get(module, math.nan))
    return dead
