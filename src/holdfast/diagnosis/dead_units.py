"""Rule `dead-units`: rectifiers that are zero on every sample."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.diagnosis.evidence import Series, series_of
from holdfast.diagnosis.functional import unread_functions
from holdfast.diagnosis.severity import graded
from holdfast.diagnosis.wording import names, percent, plural
from holdfast.live.leaves import is_rectifier


@dataclass(frozen=True, slots=True)
class DeadUnits:
    """Rectifier units that are zero on every sample: they compute nothing and receive no gradient.

    What it sees:
        At the output of every rectifier (of a function such as `F.relu`: after it, under the name of the layer before
        it) the fraction of channels whose value was exactly zero on every sample (and position) of the last observed
        steps; of the last five readings the least. Not the fraction of zeros, which is half in a healthy network.

        Noise: a unit that fires on a fraction q of the samples is silent on n of them with probability (1 − q)ⁿ. 100
        samples call a unit that fires on 10 % of them dead with probability 3e-5, or 0.05 over 1,900 units
        (Bonferroni); the message says what n samples allow (rule of three: 3/n at 95 %).

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
    subject: str = "the death of units"
    treatments: tuple[str, ...] = ("scale-rate", "reinitialise", "replace-activation", "insert-norm", "warm-up")
    static: bool = False
    fraction: tuple[float, float, float] = (0.20, 0.40, 0.80)
    window: int = 5
    samples_needed: int = 100

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the dead fractions and the channels' zeros.

        Args:
            history: of a run.

        Returns:
            One finding a stream, its sites ranked; `[]` too when the network has no rectifier.
        """
        findings = []
        unread: list[str] = []
        judged = False
        short: list[str] = []
        for stream in history.streams():
            windows = [self._window(each) for each in series_of(history, "dead-units", stream=stream, port="output")]
            missed = [] if windows else unread_functions(history, stream, is_rectifier)
            unread += missed
            judged |= not windows and not missed and bool(history.sites(stream=stream))
            enough = [each for each in windows if each.n >= self.samples_needed]
            short += [
                f"the output of '{each.site.label}' was seen on {plural(each.n, 'sample')}; "
                f"{self.samples_needed} are needed to call a unit dead"
                for each in windows
                if each not in enough
            ]
            judged |= bool(enough)
            dead = [each for each in enough if each.value >= self.fraction[0]]
            if dead:
                dead.sort(key=lambda each: -each.value)
                findings.append(self._finding(dead, len(enough)))
        if judged:
            return findings
        return Inconclusive(self.name, (*short, *unread, "no output of a rectifier was observed")[0])

    def _window(self, series: Series) -> Reading:
        """The least fraction of the last readings, each of which covers the steps before it."""
        return min(series.readings[-self.window :], key=lambda reading: reading.value)

    def _finding(self, dead: list[Reading], observed: int) -> Finding:
        first = dead[0]
        value, site = first.value, first.site
        message = (
            f"{percent(value)} of the units of '{site.label}' gave zero on all of {first.n:,} samples "
            f"(of the last observed steps): at 95 % confidence such a unit fires on less than "
            f"{percent(3 / first.n)} of samples"
        )
        if len(dead) > 1:
            message += f"; above {percent(self.fraction[0])} too: {names([each.site for each in dead[1:]])}"
        message += f"; {len(dead)} of {plural(observed, 'rectifier')} seen"
        return Finding(
            self.name,
            graded(value, self.fraction) or "info",
            tuple(each.site for each in dead),
            message,
            tuple(dead),
            self.treatments,
            strength=value / self.fraction[0],
        )
