"""Evidence: is a site's measure above its noise over the observed steps, and does that hold over many sites?

A noise floor is the 95th percentile of a measure when nothing moved, so with nothing moving a reading exceeds its floor
with probability 0.05, step by step. Of n observed steps k exceed it: p = P(Binomial(n, 0.05) ≥ k). A measure without
a floor is compared with a threshold: were its median below, each step would reach it with probability ½ at most, and
p = P(Binomial(n, ½) ≥ k). Over the sites of a run the p-values go through Benjamini–Hochberg at 5 %.

References:
    Benjamini & Hochberg 1995, "Controlling the false discovery rate".
    Dixon & Mood 1946, "The statistical sign test".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Phase, Port, Site

FLOOR_RATE = 0.05
"""How often a reading exceeds its floor when nothing moved: the floor is the 95th percentile."""

FALSE_DISCOVERY_RATE = 0.05


@dataclass(frozen=True, slots=True)
class Series:
    """The readings of one measure at one site, in rising order of step; those that are not finite are left out.

    Args:
        site: where.
        readings: at least one.

    Example:
        >>> site = Site("fc", "input")
        >>> of = [Reading("parameter-drift", site, step, step / 10, "reference SD", 64, 0.15) for step in (1, 2, 3)]
        >>> series = Series(site, tuple(of))
        >>> series.median, series.typical.step, series.above_noise
        (0.2, 2, 2)
    """

    site: Site
    readings: tuple[Reading, ...]

    @property
    def values(self) -> NDArray[np.float64]:
        """Of the readings."""
        return np.array([reading.value for reading in self.readings], np.float64)

    @property
    def median(self) -> float:
        """Over the observed steps."""
        return float(np.median(self.values))

    @property
    def typical(self) -> Reading:
        """The reading nearest to the median, the later one among equals: what a finding shows as its evidence."""
        median = self.median
        return min(reversed(self.readings), key=lambda reading: abs(reading.value - median))

    @property
    def above_noise(self) -> int:
        """How many readings are above their own floor."""
        return sum(reading.above_noise for reading in self.readings)

    @property
    def samples(self) -> int:
        """The usual sample size of a reading."""
        return int(np.median([reading.n for reading in self.readings]))

    @property
    def noise_p(self) -> float:
        """How often as many readings would be above their floors if nothing moved."""
        return exceedance(self.above_noise, len(self.readings))

    def later_half(self) -> Series:
        """The second half of the readings (all of one): how things are now, not how they began."""
        return Series(self.site, self.readings[len(self.readings) // 2 :])


def series_of(
    history: History,
    measure: str,
    *,
    stream: str,
    port: Port,
    phase: Phase = "train",
    lag: int | None = None,
    longest: int | None = None,
) -> list[Series]:
    """A measure's readings by site.

    Args:
        history: of a run.
        measure: its name.
        stream: which model.
        port: of the sites.
        phase: of the sites.
        lag: decade of the lag, or `None` for all.
        longest: readings over a longer lag are left out.

    Returns:
        One series for each site that has a finite reading, in the order of their first reading.
    """
    groups: dict[Site, list[Reading]] = {}
    for reading in history.readings(measure, lag=lag):
        site = reading.site
        if (site.stream, site.port, site.phase) != (stream, port, phase) or not math.isfinite(reading.value):
            continue
        if longest is None or reading.lag is None or reading.lag <= longest:
            groups.setdefault(site, []).append(reading)
    return [Series(site, tuple(readings)) for site, readings in groups.items()]


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


def sustained(values: NDArray[np.float64], threshold: float) -> float:
    """P-value of the sign test that a series' median is below a threshold.

    Args:
        values: independent, one a step.
        threshold: reached from below.

    Returns:
        How often as many values would reach the threshold if the median were below it.

    Example:
        >>> sustained(np.ones(5), 0.5), sustained(np.zeros(5), 0.5)
        (0.03125, 1.0)
    """
    return exceedance(int(np.sum(values >= threshold)), len(values), 0.5)


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
