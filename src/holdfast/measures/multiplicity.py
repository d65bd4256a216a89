"""Which readings stand above their noise when many sites are looked at together.

A noise floor is the 95th percentile of a measure when nothing moved: of 100 sites, 5 exceed theirs at every step. A
site's readings of one measure over one lag are judged together: of n readings k exceed their floors, and
p = P(Binomial(n, 0.05) ≥ k). The p-values of all sites go through Benjamini–Hochberg at 5 %, so that of those that
stand at most 5 % are false, however many sites there are. Readings of one site are taken as independent, which those
over windows that overlap are not; those of neighbouring sites may depend on each other, as long as they rise together.

References:
    Benjamini & Hochberg 1995, "Controlling the false discovery rate".
    Benjamini & Yekutieli 2001, "The control of the false discovery rate in multiple testing under dependency".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from holdfast.core.reading import Reading

FLOOR_RATE = 0.05
"""How often a reading exceeds its floor when nothing moved: the floor is the 95th percentile."""

FALSE_DISCOVERY_RATE = 0.05


def within_noise(readings: Sequence[Reading], rate: float = FALSE_DISCOVERY_RATE) -> list[bool]:
    """For each reading, whether what it shows may be noise, the number of sites accounted for.

    Args:
        readings: of any measures, sites and lags; those of one measure, site and decade of lag are judged together.
            Give all that are looked at: what is left out is not accounted for.
        rate: the share of false ones among those that are not within noise.

    Returns:
        One answer for each reading, the same for all that are judged together. A reading without a floor is exact and
        never within noise; one that is not finite always is.

    Example:
        >>> from holdfast.core.site import Site
        >>> def drift(module, step, value):
        ...     return Reading("parameter-drift", Site(module, "input"), step, value, "reference SD", 64, 0.1, lag=1)
        >>> moving = [drift("fc1", step, 0.3) for step in (1, 2, 3)]
        >>> chance = [drift("fc2", step, value) for step, value in ((1, 0.12), (2, 0.02), (3, 0.05))]
        >>> within_noise(moving + chance)
        [False, False, False, True, True, True]
    """
    groups: dict[tuple[object, ...], list[Reading]] = {}
    for reading in readings:
        if reading.noise_floor is not None and math.isfinite(reading.value):
            groups.setdefault(_group(reading), []).append(reading)
    p_values = [exceedance(sum(each.above_noise for each in group), len(group)) for group in groups.values()]
    stands = dict(zip(groups, discoveries(p_values, rate), strict=True))
    return [
        not math.isfinite(reading.value) or (reading.noise_floor is not None and not stands[_group(reading)])
        for reading in readings
    ]


def exceedance(exceeding: int, observed: int, rate: float = FLOOR_RATE) -> float:
    """P(Binomial(observed, rate) ≥ exceeding).

    Args:
        exceeding: how many did.
        observed: out of how many.
        rate: how often one does when nothing is the matter.

    Returns:
        The p-value; 1 when nothing was observed.

    Example:
        >>> round(exceedance(1, 1), 3), round(exceedance(3, 3), 6), exceedance(0, 0)
        (0.05, 0.000125, 1.0)
    """
    from scipy.special import bdtrc  # not scipy.stats, which takes a second to load

    return float(bdtrc(exceeding - 1, observed, rate)) if exceeding else 1.0


def discoveries(p_values: Sequence[float], rate: float = FALSE_DISCOVERY_RATE) -> list[bool]:
    """Which p-values stand after Benjamini–Hochberg.

    Args:
        p_values: one a site.
        rate: the share of false ones among those that stand.

    Returns:
        One answer for each.

    Example:
        >>> discoveries([0.001, 0.04, 0.5])
        [True, False, False]
        >>> discoveries([])
        []
    """
    ranked = sorted(p_values)
    below = [p for rank, p in enumerate(ranked, 1) if p <= rate * rank / len(ranked)]
    return [bool(below) and p <= below[-1] for p in p_values]


def _group(reading: Reading) -> tuple[object, ...]:
    return reading.measure, reading.site, reading.lag_decade
