"""Straightness: how much of a site's travelling is a journey, and how much is jitter.

    straightness = net displacement / path length        over the same steps

What it sees:
    Parameter drift over L steps against the sum of the drifts from step to step. 1: every step goes the same way. A
    random walk of L steps in many dimensions gives 1/√L (0.32, 0.1 and 0.03 for 10, 100 and 1,000 steps), a site that
    swings to and fro less.

Why it matters:
    Jitter is answered by a lower learning rate, a larger batch or an average of the weights: the layer above chases
    something that comes back. A journey is what learning is; only its pace can be too high.

When it is wrong:
    Displacement is in SDs at the window's beginning and each leg in SDs at its own: where the signal grows, the figure
    is too large, and it can exceed 1. The path is known at the cadence only (see path-length). Given only where both
    are above their floors. The interval takes the two as independent; they come from the same samples, so that it is
    rather too wide.

Example:
    >>> site = Site("fc", "input", phase="probe")
    >>> net = Reading("parameter-drift", site, 100, 0.5, "reference SD", 64, 0.1, (0.4, 0.6), lag=100)
    >>> path = Reading("path-length", site, 100, 5.0, "reference SD", 64, 0.5, (4.0, 6.0), lag=100)
    >>> straightness(net, path).value                         # as a random walk: 1/√100
    0.1

References:
    Batschelet 1981, "Circular statistics in biology", section 2 (the straightness index of an animal's path).
    Benhamou 2004, "How to reliably estimate the tortuosity of an animal's path".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from holdfast.core.protocols import History
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.path_length import path_length
from holdfast.measures.ratio import ratio

QUANTITY = Quantity("straightness", "straightness", Unit.RATIO, "neither", cost="one extra forward", logarithmic=True)


class Journey(NamedTuple):
    """What a site did within a window of steps.

    Args:
        displacement: parameter drift from the window's beginning to its end.
        path: path length within it.
        straightness: their ratio; `None` where one of them is within noise.
        legs: how many single drifts the path is made of.
        seen: the share of the window's steps that they cover; 1 where the path is a plain sum.
    """

    displacement: Reading
    path: Reading
    straightness: Reading | None
    legs: int
    seen: float


def straightness(
    displacement: Reading, path: Reading, *, site: Site | None = None, step: int | None = None, lag: int | None = None
) -> Reading | None:
    """Net displacement over path length.

    Args:
        displacement: parameter drift over the window.
        path: path length over the same window.
        site: where; `None` takes the displacement's.
        step: the step; `None` takes the displacement's.
        lag: of the window; `None` takes the displacement's.

    Returns:
        The ratio, with an interval where both have one; `None` when one of them is within noise.
    """
    if not (displacement.above_noise and path.above_noise and path.value > 0):
        return None
    value, interval = ratio(displacement, path)
    return Reading(
        QUANTITY.name,
        displacement.site if site is None else site,
        displacement.step if step is None else step,
        value,
        QUANTITY.unit,
        min(displacement.n, path.n),
        interval=interval,
        lag=displacement.lag if lag is None else lag,
    )


def journeys(history: History, site: Site | None = None) -> list[Journey]:
    """Jitter or journey: every displacement of the fixed probe over 10 steps or more, beside the path within it.

    Args:
        history: of a run that was watched with a fixed probe.
        site: one site, or all.

    Returns:
        In rising order of step; empty where the run has no lag-1 readings of the fixed probe within a window.
    """
    legs: dict[Site, list[Reading]] = {}
    for leg in history.readings("parameter-drift", site, lag=1):
        legs.setdefault(leg.site, []).append(leg)
    found = []
    for net in history.readings("parameter-drift", site):
        if net.site.phase != "probe" or net.lag is None or net.lag < 10:
            continue
        mine = _within(legs.get(net.site, ()), net.step - net.lag, net.step)
        path = path_length(mine, lag=net.lag, step=net.step)
        if path is not None:
            seen = sum(leg.lag or 0 for leg in mine) / net.lag
            found.append(Journey(net, path, straightness(net, path), len(mine), seen))
    return found


def path_over(history: History) -> list[Reading]:
    """Path lengths of a stored run.

    Args:
        history: of a run.
    """
    return [each.path for each in journeys(history)]


def over(history: History) -> list[Reading]:
    """Straightness in a stored run.

    Args:
        history: of a run.
    """
    return [each.straightness for each in journeys(history) if each.straightness is not None]


def _within(legs: Sequence[Reading], first: int, last: int) -> list[Reading]:
    """Legs between two steps, each of which begins where none before it is under way."""
    kept: list[Reading] = []
    reached = first
    for leg in legs:
        if leg.step <= last and leg.step - (leg.lag or 0) >= reached:
            kept.append(leg)
            reached = leg.step
    return kept
