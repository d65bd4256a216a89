"""Evidence: is a site's measure above its noise over the observed steps, and does that hold over many sites?

A noise floor is the 95th percentile of a measure when nothing moved, so with nothing moving a reading exceeds its floor
with probability 0.05, step by step, and of n observed steps k exceed it with p = P(Binomial(n, 0.05) ≥ k). A measure
without a floor is compared with a threshold: were its median below, each step would reach it with probability ½ at
most, and p = P(Binomial(n, ½) ≥ k). Over the sites of a run the p-values go through Benjamini–Hochberg at 5 %, as
`measures.multiplicity` has it.

References:
    Benjamini & Hochberg 1995, "Controlling the false discovery rate".
    Dixon & Mood 1946, "The statistical sign test".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Phase, Port, Site
from holdfast.measures.multiplicity import FALSE_DISCOVERY_RATE as FALSE_DISCOVERY_RATE
from holdfast.measures.multiplicity import discoveries as discoveries
from holdfast.measures.multiplicity import exceedance as exceedance


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
