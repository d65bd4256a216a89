"""Rule `saturated-units`: sigmoids or tanhs on their flat ends."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.site import Port
from holdfast.diagnosis.evidence import Series, discoveries, exceedance, series_of
from holdfast.diagnosis.functional import unread_functions
from holdfast.diagnosis.severity import graded
from holdfast.diagnosis.wording import names, percent, plural
from holdfast.live.leaves import saturation_threshold

_PORTS: tuple[Port, ...] = ("input", "output")


@dataclass(frozen=True, slots=True)
class SaturatedUnits:
    """Sigmoids or tanhs work on their flat ends, where almost no gradient passes.

    What it sees:
        At the input of every sigmoid and tanh, modules and functions alike (the function's is the output of the layer
        before it), the fraction of values where the slope is below 5 % of its greatest
        (sigmoid |z| > 4.357, tanh |z| > 2.178), its median over the later half of the observed steps. A site counts
        when that exceeds 10 % beyond chance (binomial with the samples of those steps, not the elements, as n;
        Benjamini–Hochberg over the sites).

        Thresholds: 10 % a remark, 25 % a warning, 60 % critical. A standard normal input of a tanh has 2.9 % beyond,
        one of SD 1.7 has 20 %; a sigmoid reaches 25 % at an SD of 3.8 (P(|N(0,1)| > 4.357/3.8) = 0.25).

    Why it matters:
        A saturated unit passes back less than 5 % of the gradient, and its own weights hardly change: it stays where
        it is. What comes out no longer depends on the sample.

    When it is wrong:
        Gates of recurrent cells and outputs of a classifier are meant to saturate; gates inside `nn.LSTM` are not
        seen. A binary code learned on purpose is saturated and fine.

    Example:
        62 % of the values at the input of '19' lie on the flat ends.

    What to do:
        insert-norm before the activation; replace-activation by one without flat ends; reinitialise when it was so
        from the first step; scale-rate when it came with training.

    References:
        Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks".
    """

    name: str = "saturated-units"
    subject: str = "saturation of units"
    treatments: tuple[str, ...] = ("insert-norm", "replace-activation", "reinitialise", "scale-rate")
    static: bool = False
    fraction: tuple[float, float, float] = (0.10, 0.25, 0.60)
    samples_needed: int = 16

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the saturated fractions.

        Args:
            history: of a run.

        Returns:
            One finding a stream, its sites ranked; `[]` too when the network has no sigmoid and no tanh.
        """
        findings = []
        few = 0
        unread: list[str] = []
        judged = False
        for stream in history.streams():
            series = [
                each for port in _PORTS for each in series_of(history, "saturated-fraction", stream=stream, port=port)
            ]
            missed = [] if series else unread_functions(history, stream, _saturates)
            unread += missed
            enough = [each for each in series if each.samples >= self.samples_needed]
            few = max([few, *(each.samples for each in series)])
            # Structure known and other readings there: no sigmoid was observed because there is none.
            judged |= bool(enough) or (not series and not missed and bool(history.sites(stream=stream)))
            stands = discoveries([self._p_value(each) for each in enough])
            fired = [s for s, stand in zip(enough, stands, strict=True) if stand and self._level(s) >= self.fraction[0]]
            if fired:
                findings.append(self._finding(sorted(fired, key=self._level, reverse=True), len(enough)))
        if judged:
            return findings
        if unread and not few:
            return Inconclusive(self.name, unread[0])
        return Inconclusive(
            self.name,
            f"the saturated fraction was read on {plural(few, 'sample')}; it needs {self.samples_needed} at a step",
        )

    def _level(self, series: Series) -> float:
        return series.later_half().median

    def _p_value(self, series: Series) -> float:
        later = series.later_half()
        share = min(1.0, max(0.0, later.median))
        samples = sum(reading.n for reading in later.readings)  # every step has its own batch
        return exceedance(round(share * samples), samples, self.fraction[0])

    def _finding(self, fired: list[Series], observed: int) -> Finding:
        first = fired[0]
        level = self._level(first)
        began = float(first.values[0])
        message = (
            f"{percent(level)} of the values at the {first.site.port} of '{first.site.label}' lie on the activation's "
            f"flat ends, where it passes back less than 5 % of the gradient (median of the last "
            f"{plural(len(first.later_half().readings), 'observed step')}, {percent(began)} at the first; "
            f"n = {first.samples} samples)"
        )
        if len(fired) > 1:
            message += f"; above {percent(self.fraction[0])} too: {names([s.site for s in fired[1:]])}"
        message += f"; {len(fired)} of {plural(observed, 'activation')} seen"
        return Finding(
            self.name,
            graded(level, self.fraction) or "info",
            tuple(each.site for each in fired),
            message,
            tuple(each.later_half().typical for each in fired),
            self.treatments,
            strength=level / self.fraction[0],
        )


def _saturates(function: str) -> bool:
    return saturation_threshold(function) is not None
