"""What a spike came from: the batch, the step before it, or a site that drifted first. Read off a stored run.

The loss of step t is that of batch t under the parameters that step t − 1 left. So

    precursor   a site's own readings have a spike that began two or more of them before t and lasted until t;
    update      the step t − 1 was unusual: its update ratio, its gradient norm or its learning rate;
    data        nothing before t was unusual, loss and gradient are up at t, and the next batch is back to normal;
    unknown     none of these can be said.

They are asked in this order, since the earlier explains the later: a drift that ends in a large update is the drift's.
Each is what the record says, not an experiment: the causal test is `replay_spike`. A site is judged by the detector
of spikes itself, so it needs some 80 readings, and what grows over hundreds of them is not told from the run's course;
readings that are not above zero are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.measures.spikes import LEAST_RISE, Spike, spikes

Origin = Literal["data", "update", "precursor", "unknown"]

_FEW_HUNDRED = 400  # readings of a site: what the detector's windows hold, and the spike itself
_READINGS = 20  # of a series before one of them can be said to be unusual
_OUT = 6.0  # spreads, for one step of up to some hundred series
_LEAST_RATE = math.log(1.5)
_QUARTILES = 1.3489795003921634


@dataclass(frozen=True, slots=True)
class Precursor:
    """A site whose readings stood out before a spike, until then.

    Args:
        measure: of its readings.
        site: where.
        step: the first reading that stands out.
        lead: steps from there to the spike.
        readings: how many from there to the spike.
        rise: the highest of them over the usual before, in nats.
    """

    measure: str
    site: Site
    step: int
    lead: int
    readings: int
    rise: float


@dataclass(frozen=True, slots=True)
class Cause:
    """What the record says of a spike's origin.

    Args:
        spike: which.
        origin: in a word.
        reason: in a sentence's worth.
        precursors: sites that drifted first, the longest lead first.
        update: rise of what was unusual about the step before, in nats, by its name.
        gradient: rise of the gradient norm at the spike's own step, in nats; `None` where it was not recorded.
    """

    spike: Spike
    origin: Origin
    reason: str
    precursors: tuple[Precursor, ...]
    update: tuple[tuple[str, float], ...]
    gradient: float | None


def spike_cause(history: History, spike: Spike, stream: str = "net") -> Cause:
    """Tell where a spike came from, as far as the stored series and readings say.

    Args:
        history: of the run.
        spike: of one of its series.
        stream: which model.

    Returns:
        The origin and what speaks for it.

    Example:
        >>> from holdfast.core.record import StepRecord
        >>> from holdfast.measures.spikes import of_history
        >>> from holdfast.store.memory import MemoryRun
        >>> run, noise = MemoryRun(), np.random.default_rng(0).standard_normal((300, 2))
        >>> for step, (a, b) in enumerate(np.exp(0.1 * noise).tolist(), 1):
        ...     bad = 5.0 if step == 200 else 1.0
        ...     run.write(StepRecord(step, values={"loss": a * bad, "gradient-norm": b * bad}))
        >>> spike_cause(run, of_history(run)[0]).origin
        'data'
    """
    precursors = _precursors(history, spike.step, stream)
    before, seen = _step_before(history, spike.step, stream)
    gradient = _rise_at(*history.values("gradient-norm", stream), spike.step)
    origin, reason = _judge(spike, precursors, before, seen, gradient)
    return Cause(spike, origin, reason, precursors, before, gradient)


def _judge(
    spike: Spike,
    precursors: Sequence[Precursor],
    before: Sequence[tuple[str, float]],
    seen: Sequence[str],
    gradient: float | None,
) -> tuple[Origin, str]:
    if precursors:
        first = precursors[0]
        return "precursor", (
            f"the {first.measure} at '{first.site.label}' stood out from {first.lead} steps before, "
            f"at ×{math.exp(first.rise):.2g} its usual"
        )
    if before:
        name, rise = before[0]
        return "update", f"the step before was unusual: its {name} was ×{math.exp(rise):.2g} the usual"
    if not seen:
        return "unknown", f"nothing was recorded of step {spike.step - 1}, whose update the loss was taken after"
    if gradient is not None and gradient < spike.line / 2 and spike.series == "loss":
        return "unknown", "the gradient of that batch was as usual, and so was the step before"
    if spike.sustained:
        return (
            "unknown",
            f"it lasted {spike.lasted} steps, so it was not the batch alone; the step before was as usual",
        )
    lasted = "the next batch was" if spike.lasted == 1 else f"after {spike.lasted} steps the batches were"
    return "data", f"nothing before was unusual ({', '.join(seen)}), and {lasted} back to normal"


def _step_before(history: History, step: int, stream: str) -> tuple[tuple[tuple[str, float], ...], tuple[str, ...]]:
    """What was unusual about the step before, the largest rise first; and what of it was recorded at all."""
    found, seen = [], []
    for name, least in (("learning-rate", _LEAST_RATE), ("gradient-norm", LEAST_RISE)):
        rise, line = _rise_and_line(*history.values(name, stream), step - 1)
        if rise is None:
            continue
        seen.append(name)
        if rise >= max(line, least):
            found.append((name, rise))
    ratios = [
        (site, rise, line)
        for site, readings in _by_site(history, "update-ratio", stream).items()
        for rise, line in [_rise_and_line(*_columns(readings), step - 1)]
        if rise is not None
    ]
    if ratios:
        seen.append("update-ratio")
        out = [(site, rise) for site, rise, line in ratios if rise >= max(line, LEAST_RISE)]
        found += [(f"update-ratio at '{site.label}'", rise) for site, rise in out]
    # A learning rate without anything else recorded says little about the update.
    return tuple(sorted(found, key=lambda each: -each[1])), tuple(seen if seen != ["learning-rate"] else [])


def _precursors(history: History, step: int, stream: str) -> tuple[Precursor, ...]:
    found = []
    for measure in history.measures():
        for site, readings in _by_site(history, measure, stream).items():
            one = _precursor(measure, site, readings, step)
            if one is not None:
                found.append(one)
    return tuple(sorted(found, key=lambda each: (-each.lead, -each.rise)))


def _precursor(measure: str, site: Site, readings: Sequence[Reading], step: int) -> Precursor | None:
    """The spike of a site's own readings that began before a step and went on until then."""
    earlier = [reading for reading in readings if reading.step < step][-_FEW_HUNDRED:]
    found = spikes([reading.value for reading in earlier], [reading.step for reading in earlier], series=measure)
    if not found:
        return None
    first = found[-1].step
    count = sum(reading.step >= first for reading in earlier)
    # The step before alone is the update's matter.
    if found[-1].last < earlier[-1].step or count < 2 or step - first < 2:
        return None
    return Precursor(measure, site, first, step - first, count, found[-1].rise)


def _rise_at(steps: ndarray, values: ndarray, step: int) -> float | None:
    return _rise_and_line(steps, values, step)[0]


def _rise_and_line(steps: ndarray, values: ndarray, step: int) -> tuple[float | None, float]:
    """How far a value is above the usual of up to 256 before it, in nats, and from where on that is unusual."""
    usable = np.isfinite(values) & (values > 0)
    steps, values = steps[usable], values[usable]
    place = int(np.searchsorted(steps, step))
    if place >= len(steps) or steps[place] != step or place < _READINGS:
        return None, math.inf
    usual, line = _range(np.log(values[max(0, place - 256) : place]))
    return float(np.log(values[place]) - usual), line


def _range(logs: Float64[ndarray, values]) -> tuple[float, float]:
    """The median and how far from it is out of the range."""
    low, median, high = np.quantile(logs, [0.25, 0.5, 0.75])
    return float(median), float(_OUT * (1 + 4 / len(logs)) * (high - low) / _QUARTILES)


def _by_site(history: History, measure: str, stream: str) -> dict[Site, list[Reading]]:
    """Readings over one step, at all sites of a model, in rising order of step."""
    groups: dict[Site, list[Reading]] = {}
    for reading in history.readings(measure):
        if reading.site.stream == stream and reading.lag in (None, 1) and math.isfinite(reading.value):
            groups.setdefault(reading.site, []).append(reading)
    return groups


def _columns(readings: Sequence[Reading]) -> tuple[ndarray, ndarray]:
    steps = np.array([reading.step for reading in readings], np.int64)
    return steps, np.array([reading.value for reading in readings], np.float64)
