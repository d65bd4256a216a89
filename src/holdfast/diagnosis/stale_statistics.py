"""Rule `stale-statistics`: running statistics that are systematically not those of the batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.core.finding import Finding, Inconclusive, Severity
from holdfast.core.protocols import History
from holdfast.core.site import Site
from holdfast.diagnosis.batch_normalisers import SETTLED, momentum_of, normaliser_series, reason_against
from holdfast.diagnosis.evidence import Series, discoveries
from holdfast.diagnosis.severity import graded, worst
from holdfast.diagnosis.wording import names, number, percent, plural, proof


@dataclass(frozen=True, slots=True)
class StaleStatistics:
    """The running statistics of BatchNorm layers are out of date: off in the same direction, step after step.

    What it sees:
        A cause: mean and variance of the batches less the running ones, with their signs, averaged over windows of five
        observed steps (`running-lag`). What scatters from batch to batch cancels; what stays is systematic, and
        measuring the statistics anew would mend it. So it is silent about noise (batch-noise), and about running
        statistics that are wrong in another direction at each step (train-eval-gap alone). The first 30 steps are left
        out. A layer counts when its windows exceed their noise floors more often than 5 % of them would by chance
        (binomial, Benjamini–Hochberg over the layers) and the median over the later half of the windows reaches a
        threshold.

        Thresholds, in SD of the layer's output before γ: 0.25 a remark, 0.5 a warning, 1 critical. Seen in networks
        that learn well, batches of 8 to 64, momentum 0.1: below 0.1. A layer that uses its running statistics in
        training too (a frozen one) gets a remark at most: it trains with what it is evaluated with. A model that
        is in eval mode as a whole while it is trained does not.

    Why it matters:
        Evaluation normalises with statistics of weights, or of data, that are gone. Causes: a momentum too small for
        the length of the run or for the speed of the weights, momentum 0, statistics loaded after the weights or from
        other data, `model.train()` forgotten.

    When it is wrong:
        While the learning rate is high and the weights run, running statistics always lag; they catch up when it falls.
        Statistics kept from pre-training on purpose are what they should be. When training and evaluation data differ,
        those of the training data are not the remedy either.

    Example:
        The running statistics of '0.1' lie 0.54 SD from its batches', always on the same side.

    What to do:
        re-estimate, after training or before each evaluation; and remove the cause: a momentum of 0.01 to 0.1 (in
        PyTorch the share of the new batch), `model.train()` in the loop. freeze-batchnorm only after re-estimating.

    References:
        Wu & Johnson 2021, "Rethinking 'batch' in BatchNorm", section 3. Izmailov et al. 2018, "Averaging weights leads
        to wider optima and better generalization" (statistics must be computed anew for averaged weights).
    """

    name: str = "stale-statistics"
    subject: str = "the staleness of running statistics"
    treatments: tuple[str, ...] = ("re-estimate",)
    static: bool = False
    lag: tuple[float, float, float] = (0.25, 0.5, 1.0)
    windows_needed: int = 3

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the lags at the batch normalisers.

        Args:
            history: of a run.

        Returns:
            One finding a stream, its layers ranked by lag; `[]` too without a batch normaliser that keeps running
            statistics.
        """
        findings = []
        reasons = []
        for stream in history.streams():
            series = normaliser_series(history, "running-lag", stream, after=SETTLED)
            enough = [each for each in series if len(each.readings) >= self.windows_needed]
            stale = self._stale(enough)
            if stale:
                findings.append(self._finding(history, stale, len(enough)))
            if not self._keeps_none(history, stream):
                what = f"the lag over five observed steps (after step {SETTLED})"
                reasons.append(reason_against(history, stream, series, self.windows_needed, what))
        reason = next(filter(None, reasons), None if history.streams() else "no layer was observed")
        return Inconclusive(self.name, reason) if reason and not findings else findings

    def _keeps_none(self, history: History, stream: str) -> bool:
        """Whether the normalisers observed keep no running statistics."""
        kept = ("train-eval-gap", "running-lag")
        noise = normaliser_series(history, "batch-noise", stream)
        return bool(noise) and not any(normaliser_series(history, measure, stream) for measure in kept)

    def _stale(self, series: list[Series]) -> list[Series]:
        stands = discoveries([each.noise_p for each in series])
        stale = [each for each, stand in zip(series, stands, strict=True) if stand and _now(each) >= self.lag[0]]
        return sorted(stale, key=lambda each: -_now(each))

    def _finding(self, history: History, stale: list[Series], judged: int) -> Finding:
        first = stale[0]
        steps = len(first.later_half().readings)
        message = (
            f"the running statistics of '{first.site.label}' lie {number(_now(first))} SD from its batches', always on "
            f"the same side (median of the last {plural(steps, 'window')} of five observed steps; "
            f"{proof(first.later_half().typical)}){self._cause(history, first.site)}"
        )
        if len(stale) > 1:
            message += f"; so do those of {names([each.site for each in stale[1:]])}"
        message += f"; {len(stale)} of {plural(judged, 'batch normaliser')}"
        return Finding(
            self.name,
            worst([self._severity(history, each) for each in stale]),
            tuple(each.site for each in stale),
            message,
            tuple(each.later_half().typical for each in stale),
            self.treatments,
            strength=_now(first) / self.lag[0],
        )

    def _severity(self, history: History, series: Series) -> Severity:
        return "info" if _frozen(history, series.site) else graded(_now(series), self.lag) or "info"

    def _cause(self, history: History, site: Site) -> str:
        """What the structure tells of why, as the end of a sentence."""
        if site.phase == "eval":
            return "; the model is trained in eval mode"
        if _frozen(history, site):
            return "; it is frozen: it trains with them too"
        momentum = momentum_of(history, site.stream, site.module)
        left = None if momentum is None else (1 - momentum) ** history.steps
        if momentum is None or left is None or not 0.05 <= left <= 1:
            return ""
        return f"; at momentum {momentum:g} they hold {percent(left)} of their start after {history.steps:,} steps"


def _now(series: Series) -> float:
    return float(np.median(series.later_half().values))


def _frozen(history: History, site: Site) -> bool:
    """Whether a layer of a model in train mode normalises with its running statistics: then its batch has no noise."""
    return site.phase == "train" and not history.readings("batch-noise", site)
