"""Distances between what a stored run kept of a site at two steps: observed drift, from sketches and moments.

The two summaries are of *different batches* under *moved parameters*. Their difference is observed drift, of both
causes together, and no internal covariate shift: that compares the same inputs (see parameter-drift), which a summary
has forgotten.

A reading's floor is therefore no sampling floor but an empirical one: the 95th percentile of the same distance between
neighbouring observed steps of the run. It holds the batches' noise and what the parameters move from one look to the
next, so that a distance over a longer lag that exceeds it is a displacement that batches alone do not explain. Where
parameters move steadily and fast it is too high, never too low. Below 20 observed steps it cannot be told and there
are no readings.

For each of the lags 1, 10, 100 and 1,000 one state is held; when a later one is at least so much later, the distance is
read under its true lag, and the later one is held in its place: readings of one lag do not overlap, as the fixed
probe's do not.

Distances in the unit of the values are divided by the SD of the earlier summary, over all its values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from holdfast.core.protocols import History
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.measures.gaussian_kl import QUANTITY as GAUSSIAN_KL
from holdfast.measures.gaussian_kl import gaussian_kl
from holdfast.measures.gaussian_w2 import QUANTITY as GAUSSIAN_W2
from holdfast.measures.gaussian_w2 import gaussian_w2
from holdfast.measures.jensen_shannon import QUANTITY as JENSEN_SHANNON
from holdfast.measures.jensen_shannon import jensen_shannon
from holdfast.measures.kolmogorov_smirnov import QUANTITY as KOLMOGOROV_SMIRNOV
from holdfast.measures.kolmogorov_smirnov import kolmogorov_smirnov
from holdfast.measures.log_scale_ratio import QUANTITY as LOG_SCALE_RATIO
from holdfast.measures.log_scale_ratio import log_scale_ratio
from holdfast.measures.resampling import floor_of
from holdfast.measures.standardised_mean_shift import QUANTITY as MEAN_SHIFT
from holdfast.measures.standardised_mean_shift import standardised_mean_shift
from holdfast.measures.wasserstein1 import QUANTITY as WASSERSTEIN1
from holdfast.measures.wasserstein1 import wasserstein1
from holdfast.stats.summary import Summary

LAGS = (1, 10, 100, 1000)

POINTS = 64
"""At most so many readings a site and lag, evenly spread over the run."""

Between = Callable[[Summary, Summary], float]
Stored = Sequence[tuple[int, Summary]]

DISTANCES: tuple[tuple[Quantity, Between], ...] = (
    (MEAN_SHIFT, lambda a, b: standardised_mean_shift(a.moments, b.moments)),
    (LOG_SCALE_RATIO, lambda a, b: log_scale_ratio(a.moments, b.moments)),
    (GAUSSIAN_W2, lambda a, b: gaussian_w2(a.moments, b.moments) / a.moments.sd),
    (GAUSSIAN_KL, lambda a, b: gaussian_kl(a.moments, b.moments)),
    (WASSERSTEIN1, lambda a, b: wasserstein1(a.sketch, b.sketch) / a.moments.sd),
    (JENSEN_SHANNON, lambda a, b: jensen_shannon(a.sketch, b.sketch)),
    (KOLMOGOROV_SMIRNOV, lambda a, b: kolmogorov_smirnov(a.sketch, b.sketch)),
)
"""What is measured between two summaries."""


def stored_distances(history: History, quantity: Quantity, between: Between) -> list[Reading]:
    """One distance at every site of a run whose inputs or outputs were summarised, over lags of 1, 10, 100 and 1,000.

    Args:
        history: of a run.
        quantity: of the distance.
        between: the distance of an earlier and a later summary, both of which vary.

    Returns:
        Readings under their true lag, sites in the order of execution. n is the samples of a batch where the run knows
        them, else the finite values of the smaller summary. None at a site with fewer than 20 observed steps.
    """
    found: list[Reading] = []
    samples = {reading.site: reading.n for reading in history.readings("signal-spread")}
    for site in history.sites():
        if site.port not in ("input", "output"):
            continue
        stored = [(step, each) for step, each in history.summaries(site) if isinstance(each, Summary)]
        floor = _neighbours(stored, between)
        if floor is None:
            continue
        for step, lag, earlier, later in _pairs(stored):
            n = samples.get(site, min(earlier.moments.count, later.moments.count))
            value = between(earlier, later)
            found.append(Reading(quantity.name, site, step, value, quantity.unit, n, noise_floor=floor, lag=lag))
    return found


OVER: dict[str, Callable[[History], list[Reading]]] = {
    quantity.name: partial(stored_distances, quantity=quantity, between=between) for quantity, between in DISTANCES
}
"""By name, what each gives for a whole run."""


def comparable(earlier: Summary, later: Summary) -> bool:
    """Whether two summaries can be compared: both vary, on one scale, over about as many steps.

    A store merges old steps; what it merged has many times the values of a single step.

    Args:
        earlier: the one.
        later: the other.
    """
    a, b = earlier.moments, later.moments
    if not (a.count and b.count and max(a.count, b.count) <= 2 * min(a.count, b.count)):
        return False
    # An overflown sum is not above 0 and finite.
    return all(0 < each.sd < math.inf for each in (a, b)) and earlier.sketch.exponent == later.sketch.exponent


def _neighbours(stored: Stored, between: Between) -> float | None:
    """95th percentile of the distance between neighbouring observed steps; `None` below 19 pairs."""
    pairs = [(a, b) for (_, a), (_, b) in itertools.pairwise(stored) if comparable(a, b)]
    floor = floor_of(np.array([between(a, b) for a, b in pairs]))
    return floor if math.isfinite(floor) else None


def _pairs(stored: Stored) -> Iterator[tuple[int, int, Summary, Summary]]:
    """Later step, lag, earlier and later summary; those of one lag do not overlap."""
    for lag in LAGS:
        found = []
        held = stored[:1]
        for step, later in stored:
            since, earlier = held[0]
            if step - since < lag:
                continue
            if step - since < 10 * lag and comparable(earlier, later):
                found.append((step, step - since, earlier, later))
            held = [(step, later)]
        for k in np.unique(np.linspace(0, len(found) - 1, min(POINTS, len(found))).round().astype(int)).tolist():
            yield found[k]
