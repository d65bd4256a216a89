"""Spikes: steps at which the loss or the gradient stands out from the steps before it.

    y_t    = ln(loss_t), or ln(global gradient norm_t)
    rise_t = median(y_{t−k+1}, …, y_t) − median(the m values before)
    alarm  where rise_t − centre ≥ line = c · spread, and rise_t ≥ ln 1.1

    one step   k = 1, m = 15          sustained   k = 8, m = 32          c = 5.6 · (1 + 20 / n)

    centre and spread: median, and quartile distance ÷ 1.349, of the same rise over the n ≤ 256 steps before; the
    spread of the last 64 of them where that is larger.

What it sees:
    Of a series that is kept at every step, each time that it leaves its own level upwards, for one step or for many.
    The spread is that of the very figure that is judged, so that correlated steps, a steady fall of the loss and noise
    of any size widen the line by themselves. One spike is one alarm: what follows belongs to it until three steps in a
    row are below half the line, or until 64 were above it (then that is the new level).

Why it matters:
    One batch out of thousands that throws a run off costs hours, and what went before it is gone by the time that
    anybody looks.

When it is wrong:
    Of noise of 15 % around a level, of AR(1) noise up to a correlation of 0.97, of log-normal noise, and of noise that
    grows as the loss falls, it makes at most one false alarm in 10,000 steps (0.3 were seen; 1 in 20 healthy trainings
    of 1,000 steps); of tails as heavy as Student's t with five degrees of freedom, on the logarithm, 5. What it finds
    then, in 95 of 100: in noise of 15 % one step at ×4.5 and eight steps at ×2.7; in log-normal noise of σ = 0.5 one
    step at ×100 and eight at ×30. Smaller ones go unseen. The first 80 steps have no judge: there is nothing yet to
    compare with.

    A jump on purpose (a new schedule, another data set) is a jump. Where the loss is zero or below there is no
    logarithm, and values that are not finite are another matter (rule nonfinite): both are left out, as if the step had
    not been.

Example:
    >>> import numpy as np
    >>> loss = np.exp(0.15 * np.random.default_rng(0).standard_normal(600))
    >>> loss[400] *= 5
    >>> [(spike.step, spike.lasted, round(math.exp(spike.rise))) for spike in spikes(loss)]
    [(401, 1, 5)]

References:
    Rousseeuw & Croux 1993, "Alternatives to the median absolute deviation" (spreads that outliers do not move).
    Chowdhery et al. 2022, "PaLM", section 5.1 (spikes that come and go; the batch alone is not the cause).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from holdfast.core.errors import InputError
from holdfast.core.protocols import History
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit

QUANTITY = Quantity("spikes", "spike", Unit.LOG_RATIO, "higher is worse")

Series = Literal["loss", "gradient-norm"]
SERIES: tuple[Series, ...] = ("loss", "gradient-norm")

LEAST_RISE = math.log(1.1)
"""A rise of less than a tenth is no spike, however quiet the steps before."""

FACTOR = 5.6
"""Spreads above the centre at which the line lies, on many steps. Chosen by simulation: see the card."""

LONG = 5
"""From so many steps on a spike is a sustained one: the median of eight steps has moved by then."""

_WINDOW = 256
_FIRST = 64  # rises before the first judgement
_BACK = 3
_PATIENCE = 64
_EARLY = 20  # the spread of few rises is itself uncertain: × 1.3 at the first 64 of them, × 1.08 at 256
_NORMAL_QUARTILES = 1.3489795003921634  # distance between the quartiles of N(0, 1)

FIRST_JUDGED = 1 + 15 + _FIRST
"""The first step that has a judge: a level of 15 and 64 rises over it are known."""


@dataclass(frozen=True, slots=True)
class Spike:
    """A stretch of steps that stands out.

    Args:
        series: which.
        step: the first step of it.
        last: the last step of it so far.
        rise: the highest value of it over the level before, in nats.
        line: rise that raises the alarm, in nats.
        level: the usual value before, in the series' own unit.
        n: rises that the line rests on.
    """

    series: str
    step: int
    last: int
    rise: float
    line: float
    level: float
    n: int

    @property
    def lasted(self) -> int:
        """Steps from the first to the last."""
        return self.last - self.step + 1

    @property
    def sustained(self) -> bool:
        """Whether it is more than a passing batch: five steps or longer."""
        return self.lasted >= LONG

    def reading(self, site: Site) -> Reading:
        """As a reading: the rise, with the line as its floor.

        With nothing the matter the highest rise of 500 steps stays below the line 95 times in 100.

        Args:
            site: where to note it.

        Returns:
            The reading, at the spike's first step.
        """
        return Reading(QUANTITY.name, site, self.step, self.rise, QUANTITY.unit, self.n, noise_floor=self.line)


class SpikeDetector:
    """Judges a series as it comes, a few microseconds a step.

    Args:
        series: its name.

    Attributes:
        latest: the latest spike, with what is known of it so far.

    Example:
        >>> detector = SpikeDetector("loss")
        >>> for step in range(1, 301):
        ...     spike = detector.update(step, 9.0 if step == 250 else 1.0 + 0.1 * math.sin(step * step))
        ...     if spike is not None:
        ...         print(spike.step, round(spike.rise, 1))
        250 2.2
    """

    def __init__(self, series: str = "loss") -> None:
        self.series = series
        self._judges = (_Rise(1, 15), _Rise(8, 32))
        self._recent: deque[tuple[int, float]] = deque(maxlen=8)
        self.latest: Spike | None = None
        self._going = False
        self._below = 0
        self._above: list[float] = []

    def update(self, step: int, value: float) -> Spike | None:
        """Take one step's value.

        Args:
            step: the step.
            value: of the series.

        Returns:
            A spike where one begins, else `None`.
        """
        if not 0.0 < value < math.inf:
            return None
        y = math.log(value)
        if self._going and self.latest is not None:
            self._follow(self.latest, step, y)
            return None
        self._recent.append((step, y))
        alarms = [alarm for judge in self._judges if (alarm := judge.take(y)) is not None]
        if not alarms:
            return None
        self._going, self.latest = True, self._begin(alarms[0])
        return self.latest

    def _begin(self, alarm: _Alarm) -> Spike:
        up = [(at, y) for at, y in list(self._recent)[-alarm.steps :] if y - alarm.level >= alarm.line / 2]
        self._below, self._above = 0, [y for _, y in up]
        rise = max([alarm.rise, *(y - alarm.level for _, y in up)])
        first, last = (up[0][0], up[-1][0]) if up else (self._recent[-1][0],) * 2
        return Spike(self.series, first, last, rise, alarm.line, math.exp(alarm.level), alarm.n)

    def _follow(self, spike: Spike, step: int, y: float) -> None:
        """Go on with a spike: what is above stays out of the windows, so that it does not become the usual."""
        rise = y - math.log(spike.level)
        if rise < spike.line / 2:
            self._below += 1
            self._recent.append((step, y))
            for judge in self._judges:
                judge.take(y)
            self._going = self._below < _BACK
            return
        self._below = 0
        self._above.append(y)
        self.latest = replace(spike, last=step, rise=max(spike.rise, rise))
        if len(self._above) == _PATIENCE:
            for judge in self._judges:
                judge.restart(self._above)
            self._going = False


def spikes(values: Iterable[float], steps: Iterable[int] | None = None, *, series: str = "loss") -> list[Spike]:
    """All spikes of a series.

    Args:
        values: one a step.
        steps: their steps; `None` counts from 1.
        series: its name.

    Returns:
        The spikes in the order of their steps, each with its whole length.

    Raises:
        InputError: not as many steps as values.
    """
    detector, found = SpikeDetector(series), []
    values = list(values)
    places = range(1, len(values) + 1) if steps is None else list(steps)
    if len(places) != len(values):
        raise InputError("a step for each value", f"{len(places)} for {len(values)} values", "type: spikes(values)")
    for step, value in zip(places, values, strict=True):
        begun = detector.update(int(step), float(value))
        if begun is not None:
            found.append(begun)
        elif found and detector.latest is not None:
            found[-1] = detector.latest
    return found


def over(history: History) -> list[Reading]:
    """The spikes of a stored run: of the loss, noted at the model's output, and of the gradient, at its weights.

    Args:
        history: of a run.

    Returns:
        One reading a spike.
    """
    readings = []
    for stream in history.streams():
        for series in SERIES:
            site = Site("", "output" if series == "loss" else "weight_grad", stream=stream)
            readings += [spike.reading(site) for spike in of_history(history, series, stream)]
    return readings


def of_history(history: History, series: Series = "loss", stream: str = "net") -> list[Spike]:
    """The spikes of one series of a stored run.

    Args:
        history: of a run.
        series: which.
        stream: which model.

    Returns:
        The spikes in the order of their steps.
    """
    steps, values = history.values(series, stream)
    return spikes(values.tolist(), steps.tolist(), series=series)


class _Alarm(NamedTuple):
    rise: float
    line: float
    level: float  # of the logarithm
    n: int
    steps: int


class _Rise:
    """The median of the last `k` values over that of the `m` before them, beside its own past."""

    __slots__ = ("_before", "_last", "_late", "_rises")

    def __init__(self, k: int, m: int) -> None:
        self._last, self._before = _Window(k), _Window(m)
        self._rises, self._late = _Window(_WINDOW), _Window(_FIRST)

    def take(self, y: float) -> _Alarm | None:
        old = self._last.push(y)
        if old is not None:
            self._before.push(old)
        if not self._before.full:
            return None
        level = self._before.median
        rise = self._last.median - level
        alarm = None
        n = len(self._rises)
        if n >= _FIRST:
            centre = self._rises.median
            # As a loss falls its logarithm becomes noisier: the late rises tell first.
            spread = max(self._rises.spread, self._late.spread)
            line = max(centre + FACTOR * (1 + _EARLY / n) * spread, LEAST_RISE)
            if rise >= line:
                alarm = _Alarm(rise, line, level, n, self._last.size)
        self._rises.push(rise)
        self._late.push(rise)
        return alarm

    def restart(self, values: Sequence[float]) -> None:
        """Take these as the level; what is known of the rises stays."""
        self._last, self._before = _Window(self._last.size), _Window(self._before.size)
        for y in values:
            old = self._last.push(y)
            if old is not None:
                self._before.push(old)


class _Window:
    """The last so many values, in order of time and of size: a median costs nothing, a new value a binary search."""

    __slots__ = ("_ordered", "_queue", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._queue: deque[float] = deque()
        self._ordered: list[float] = []

    def __len__(self) -> int:
        return len(self._ordered)

    @property
    def full(self) -> bool:
        return len(self._ordered) == self.size

    def push(self, value: float) -> float | None:
        """Take a value; gives the one that leaves for it."""
        old = None
        if len(self._queue) == self.size:
            old = self._queue.popleft()
            del self._ordered[bisect_left(self._ordered, old)]
        self._queue.append(value)
        insort(self._ordered, value)
        return old

    @property
    def median(self) -> float:
        values, n = self._ordered, len(self._ordered)
        return (values[n // 2] + values[(n - 1) // 2]) / 2

    @property
    def spread(self) -> float:
        values, n = self._ordered, len(self._ordered)
        return (values[-1 - n // 4] - values[n // 4]) / _NORMAL_QUARTILES
