"""Rule `dead-units`: rectifiers that are zero on every sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import NamedTuple

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.diagnosis.evidence import Series, series_of
from holdfast.diagnosis.severity import graded
from holdfast.diagnosis.wording import names, percent, plural
from holdfast.stats.channels import ChannelMoments


class Window(NamedTuple):
    """Units of a site over a window of steps.

    Args:
        reading: fraction of units that were zero throughout.
        samples: how many samples that is.
    """

    reading: Reading
    samples: int


@dataclass(frozen=True, slots=True)
class DeadUnits:
    """Rectifier units that are zero on every sample: they compute nothing and receive no gradient.

    What it sees:
        At the output of every rectifier the channels whose value was exactly zero on every sample (and position) of the
        last observed steps, at most 50 of them, merged; not the fraction of zeros, which is half in a healthy network.
        Where channel statistics were not kept, the least fraction that any one step gave: an upper bound.

        Noise: a unit that fires on a fraction q of the samples is silent on n of them with probability (1 − q)ⁿ. The
        window must hold so many samples that a unit firing on 5 % of them would be called dead with less than
        0.05 / units (Bonferroni): n ≥ ln(units / 0.05) / −ln(0.95); 140 samples for 64 units.

        Thresholds: 20 % a remark, 40 % a warning, 80 % critical. Seen in ten ReLU layers of width 64 that learn well:
        up to 25 %.

    Why it matters:
        A dead unit has no gradient, so it does not come back by itself; the layer is narrower than it was paid for.

    When it is wrong:
        Units may serve rare samples that the window does not hold. Pruned channels, and experts chosen by a router, are
        zero on purpose. A layer fed by constant zeros (the border of an image) is not the layer's fault.

    Example:
        58 % of the units of '15' gave zero on all of 2,560 samples.

    What to do:
        reinitialise (He) when they were dead from the start; scale-rate or warm-up when they died in training;
        replace-activation by one that does not die; insert-norm before the rectifier.

    References:
        Glorot, Bordes & Bengio 2011, "Deep sparse rectifier neural networks". Lu et al. 2019, "Dying ReLU and
        initialization". Hanley & Lippman-Hand 1983, "If nothing goes wrong, is everything all right?" (rule of three).
    """

    name: str = "dead-units"
    treatments: tuple[str, ...] = ("scale-rate", "reinitialise", "replace-activation", "insert-norm", "warm-up")
    static: bool = False
    fraction: tuple[float, float, float] = (0.20, 0.40, 0.80)
    firing: float = 0.05
    window: int = 50

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the dead fractions and the channels' zeros.

        Args:
            history: of a run.

        Returns:
            One finding a stream, its sites ranked; `[]` too when the network has no rectifier.
        """
        findings = []
        judged = False
        short: list[str] = []
        for stream in history.streams():
            windows = [
                self._window(history, each) for each in series_of(history, "dead-units", stream=stream, port="output")
            ]
            judged |= not windows and bool(history.sites(stream=stream))
            enough = [each for each in windows if each.samples >= self._needed(each.reading.n)]
            short += [
                f"the output of '{each.reading.site.label}' was seen on {plural(each.samples, 'sample')}; "
                f"{self._needed(each.reading.n)} are needed to call a unit dead"
                for each in windows
                if each not in enough
            ]
            judged |= bool(enough)
            dead = [each for each in enough if each.reading.value >= self.fraction[0]]
            if dead:
                dead.sort(key=lambda each: -each.reading.value)
                findings.append(self._finding(dead, len(enough)))
        if judged:
            return findings
        return Inconclusive(self.name, short[0] if short else "no output of a rectifier was observed")

    def _needed(self, units: int) -> int:
        return math.ceil(math.log(max(units, 1) / 0.05) / -math.log1p(-self.firing))

    def _window(self, history: History, series: Series) -> Window:
        last = series.readings[-1]
        kept = [each for _, each in history.channels(series.site) if isinstance(each, ChannelMoments)][-self.window :]
        if kept:
            merged = reduce(add, kept)
            share = float(merged.dead.mean()) if merged.channels else 0.0
            # Positions of one sample are no independent samples: the readings say how many samples a step had.
            samples = series.samples * len(kept)
            return Window(replace(last, value=share, n=merged.channels), samples)
        recent = series.readings[-self.window :]
        return Window(min(recent, key=lambda reading: reading.value), sum(reading.n for reading in recent))

    def _finding(self, dead: list[Window], observed: int) -> Finding:
        first = dead[0]
        value, site = first.reading.value, first.reading.site
        message = (
            f"{percent(value)} of the units of '{site.label}' gave zero on all of {first.samples:,} samples "
            f"(of the last observed steps): at 95 % confidence such a unit fires on less than "
            f"{percent(3 / first.samples)} of samples"
        )
        if len(dead) > 1:
            message += f"; above {percent(self.fraction[0])} too: {names([each.reading.site for each in dead[1:]])}"
        message += f"; {len(dead)} of {plural(observed, 'rectifier')} seen"
        return Finding(
            self.name,
            graded(value, self.fraction) or "info",
            tuple(each.reading.site for each in dead),
            message,
            tuple(each.reading for each in dead),
            self.treatments,
            strength=value / self.fraction[0],
        )
