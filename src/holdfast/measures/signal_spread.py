"""Signal spread: how much of a signal tells the samples apart.

    spread_j = σ_j / √(mean_j² + σ_j²)      per channel, over samples and positions
    spread   = the greater of the pooled ratio √(Σσ²/Σ(mean²+σ²)) and the median channel's

What it sees:
    1 for a signal that varies about zero; 0 for one that is the same for every sample. The greater of the two figures
    is taken because a few channels with a huge constant (as transformers have) leave the others' information intact,
    and a few informative ones among many constant ones carry it too.

Why it matters:
    A network cannot learn from what does not differ between samples. Where the spread nears the resolution of the
    number format, the signal is rounding noise, and a shift counted in its SD means nothing.

When it is wrong:
    An input that is constant by design (a time step, a position index) has no spread and is not ill. On few values a
    channel's SD says little: channels with fewer than 8 values are left out (relative error 1/√(2·8) = 25 %).

Example:
    >>> four = ChannelMoments(*(np.array([each]) for each in (8.0, 3.0, 8 * 16.0, 0.0)))
    >>> signal_spread(four, site=Site("fc", "input"), step=1).value
    0.8

References:
    Schoenholz et al. 2017, "Deep information propagation" (how far a signal reaches).
"""

from __future__ import annotations

import math

import numpy as np

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.stats.channels import ChannelMoments

QUANTITY = Quantity("signal-spread", "signal spread", Unit.RATIO, "lower is worse", (0.0, 1.0), logarithmic=True)

LEAST_VALUES = 8
"""Values a channel, below which its SD over samples says little: relative error 1/√(2·8) = 25 %."""


def signal_spread(current: ChannelMoments, *, site: Site, step: int, samples: int | None = None) -> Reading | None:
    """The part of a signal that differs between samples.

    Args:
        current: of the site.
        site: where.
        step: the step.
        samples: how many samples the statistic holds; `None` gives as n the values of the fullest channel.

    Returns:
        The ratio, exact for these samples; `None` without a channel that has data and is not zero throughout.
    """
    value = spread_of(current)
    if math.isnan(value):
        return None
    n = int(current.count.max()) if samples is None else samples
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, n)


def spread_of(moments: ChannelMoments) -> float:
    """The bare figure of `signal_spread`.

    Args:
        moments: of one site.

    Returns:
        The ratio; NaN where there is none.
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
