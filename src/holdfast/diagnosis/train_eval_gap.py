"""Rule `train-eval-gap`: a BatchNorm layer computes another function in evaluation than in training."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.diagnosis.batch_normalisers import SETTLED, normaliser_series, reason_against
from holdfast.diagnosis.evidence import Series, discoveries, sustained
from holdfast.diagnosis.severity import graded
from holdfast.diagnosis.wording import names, number, plural


@dataclass(frozen=True, slots=True)
class TrainEvalGap:
    """The same batch gives another output in eval mode than in train mode, because of a BatchNorm layer.

    What it sees:
        The symptom: at every batch normaliser the root mean square difference between its output with the batch's
        statistics and with the running ones, in SD of the output before γ, less what the noise of this one batch
        explains. It asks not why: running statistics that lag (then stale-statistics fires beside it), that come from
        other data, or that are themselves noisy, a different way at every step (a large momentum on small batches:
        then this rule fires alone). The first 30 steps are left out; of the rest the later half's median counts where a
        sign test says that it is not below the threshold by chance (Benjamini–Hochberg over the layers).

        Thresholds, in SD of the output: 0.25 a remark, 0.5 a warning, 1 critical. Seen in networks that learn well,
        batches of 8 to 64, momentum 0.1: below 0.12. Running statistics of PyTorch's default start that were never
        moved: 0.4 to 0.6 at each layer.

    Why it matters:
        The network that is evaluated and shipped is not the one that was trained; layer by layer the differences add
        up, and a good training loss stands beside a bad score.

    When it is wrong:
        Dropout makes train and eval mode differ too: it is no part of this figure. Where batches are of one kind each
        (one class, one site) they differ from running statistics that are right. What the following layers make of a
        gap is not seen: one ahead of another normaliser costs little. While the learning rate is high a gap is normal,
        and closes as it falls. The noise of batch statistics itself, which eval mode lacks, is batch-noise's matter.

    Example:
        '0.1' gives another output in evaluation than in training on the same batch: 0.54 SD apart.

    What to do:
        re-estimate the running statistics before each evaluation, and see whether that was all; freeze-batchnorm, or
        swap-norm to a normaliser that has one mode only, where it was not.

    References:
        Ioffe 2017, "Batch renormalization". Wu & Johnson 2021, "Rethinking 'batch' in BatchNorm", section 3.
    """

    name: str = "train-eval-gap"
    subject: str = "the gap between training and evaluation"
    treatments: tuple[str, ...] = ("re-estimate", "swap-norm", "freeze-batchnorm")
    static: bool = False
    gap: tuple[float, float, float] = (0.25, 0.5, 1.0)
    steps_needed: int = 5

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the gaps at the batch normalisers.

        Args:
            history: of a run.

        Returns:
            One finding a stream, its layers ranked by gap; `[]` too without a batch normaliser that has two modes.
        """
        findings = []
        reasons = []
        for stream in history.streams():
            series = normaliser_series(history, self.name, stream, after=SETTLED)
            halves = [each.later_half() for each in series if len(each.readings) >= self.steps_needed]
            apart = self._apart(halves)
            if apart:
                findings.append(self._finding(apart, len(halves)))
            if not self._one_mode(history, stream):
                what = f"the gap (after step {SETTLED})"
                reasons.append(reason_against(history, stream, series, self.steps_needed, what))
        reason = next(filter(None, reasons), None if history.streams() else "no layer was observed")
        return Inconclusive(self.name, reason) if reason and not findings else findings

    def _one_mode(self, history: History, stream: str) -> bool:
        """Whether the normalisers observed have one mode only: no running statistics, or nothing else."""
        if normaliser_series(history, self.name, stream):
            return False
        seen = {each.site for each in normaliser_series(history, "batch-noise", stream)}
        lags = {each.site for each in normaliser_series(history, "running-lag", stream)}
        return bool(seen or lags)

    def _apart(self, halves: list[Series]) -> list[Series]:
        stands = discoveries([sustained(each.values, self.gap[0]) for each in halves])
        apart = [each for each, stand in zip(halves, stands, strict=True) if stand and each.median >= self.gap[0]]
        return sorted(apart, key=lambda each: -each.median)

    def _finding(self, apart: list[Series], judged: int) -> Finding:
        first = apart[0]
        # Not the reading's own floor: that of one step, too high for small batches. Over the steps a sign test spoke.
        above = int((first.values >= self.gap[0]).sum())
        message = (
            f"'{first.site.label}' gives another output in evaluation than in training on the same batch: "
            f"{number(first.median)} SD apart beyond the batch's noise (median of the last "
            f"{plural(len(first.readings), 'observed step')}, at {above} of them above {number(self.gap[0])}; "
            f"n = {first.samples})"
        )
        if len(apart) > 1:
            message += f"; so do {names([each.site for each in apart[1:]])}"
        message += f"; {len(apart)} of {plural(judged, 'batch normaliser')}"
        return Finding(
            self.name,
            graded(first.median, self.gap) or "info",
            tuple(each.site for each in apart),
            message,
            tuple(each.typical for each in apart),
            self.treatments,
            strength=first.median / self.gap[0],
        )
