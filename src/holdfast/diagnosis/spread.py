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
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
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
    with np.errstate(over="ignore"):
        variance, square = moments.variance, moments.variance + moments.mean**2
    usable = (moments.count >= LEAST_VALUES) & (square > 0) & np.isfinite(square)
    if not usable.any():
        return math.nan
    variance, square = variance[usable], square[usable]
    greatest = square.max()  # sums of squares near the top of float64 must not overflow
    pooled = (variance / greatest).sum() / (square / greatest).sum()
    return float(np.sqrt(max(pooled, np.median(variance / square))))


def spreads(history: History, stream: str) -> dict[Site, list[Reading]]:
    """The spread at the input of every observed module, step by step.

    Args:
        history: of a run.
        stream: which model.

    Returns:
        By site, in the order of execution; sites without a figure left out. Readings of `signal-spread` where the
        monitor wrote them, else from the channel statistics. (A run database may have merged those over some steps:
        the SD then holds the drift between these steps too, and the spread comes out too large, never too small.)
    """
    found: dict[Site, list[Reading]] = {}
    for reading in history.readings("signal-spread"):
        site = reading.site
        if (site.stream, site.port, site.phase) == (stream, "input", "train") and math.isfinite(reading.value):
            found.setdefault(site, []).append(reading)
    for site in history.sites(port="input", phase="train", stream=stream):
        if site in found:
            continue
        for step, statistic in history.channels(site):
            if not isinstance(statistic, ChannelMoments):
                continue
            value = spread(statistic)
            if math.isfinite(value):
                n = int(statistic.count.max())
                found.setdefault(site, []).append(Reading("signal-spread", site, step, value, Unit.RATIO, n))
    return found


def dead_modules(history: History, stream: str, threshold: float = DEAD_SPREAD) -> dict[str, float]:
    """Modules at whose input the samples cannot be told apart: no drift in reference SD is to be believed there.

    Args:
        history: of a run.
        stream: which model.
        threshold: of the median spread over the observed steps.

    Returns:
        Path → median spread, in the order of execution. Where no spread is known, a module with more than half of its
        features collapsed at most observed steps counts, with NaN.
    """
    medians = {
        site.module: float(np.median([reading.value for reading in readings]))
        for site, readings in spreads(history, stream).items()
    }
    dead = {module: value for module, value in medians.items() if value < threshold}
    collapsed: dict[str, list[float]] = {}
    for reading in history.readings("collapsed-features"):
        if reading.site.stream == stream and reading.site.phase == "train" and math.isfinite(reading.value):
            collapsed.setdefault(reading.site.module, []).append(reading.value)
    for module, values in collapsed.items():
        # Behind rectifiers more than half of the features may be zero while the others carry the signal.
        if module not in medians and float(np.median(values)) > 0.5:
            dead[module] = math.nan
    return dead
