"""Rule `batch-noise`: batch statistics from too few effective values."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.diagnosis.batch_normalisers import normaliser_series, reason_against
from holdfast.diagnosis.evidence import Series, discoveries, sustained
from holdfast.diagnosis.severity import graded
from holdfast.diagnosis.wording import names, number, plural, proof


@dataclass(frozen=True, slots=True)
class BatchNoise:
    """BatchNorm layers take mean and variance from so few values that each batch is normalised differently.

    What it sees:
        At every batch normaliser the standard error of the batch mean in SD of the channel, from the scatter between
        samples: 1/√n_eff, where values of one sample that are alike count once (see the measure of the same name). The
        median over the observed steps counts where a sign test says that it is not below the threshold by chance
        (Benjamini–Hochberg over the layers).

        Thresholds: 0.2 SD a remark (25 effective values), 0.3 a warning (11), 0.6 critical (2.8). Where each sample has
        one value a channel (BatchNorm1d on vectors; feature maps of one position) the figure is 1/√batch: 0.125 for
        64 samples, 0.25 for 16, 0.5 for 4, 0.71 for 2.

    Why it matters:
        The noise is added to everything that the layer hands on, it differs for the same sample from batch to batch,
        and its running statistics know nothing of it: the error of BatchNorm networks rises below some 16 samples.

    When it is wrong:
        Some noise regularises; a small network on few data may do better with it. Samples that are not independent
        (frames of a clip, tokens as samples) have more noise than is seen. Under gradient accumulation it is the
        micro-batch that counts, and it is the one judged. Layers whose output hardly matters count like the others.

    Example:
        The batch mean of '3.1' scatters by 0.71 SD: 2 samples are worth 2 independent values a channel.

    What to do:
        swap-norm to a normaliser that does not look at the batch (GroupNorm, LayerNorm); a larger batch, or statistics
        synchronised over ranks; freeze-batchnorm where the network is pre-trained.

    References:
        Wu & He 2018, "Group normalization", figure 1. Luo et al. 2019, "Towards understanding regularization in batch
        normalization". Dixon & Mood 1946, "The statistical sign test".
    """

    name: str = "batch-noise"
    subject: str = "the noise of batch statistics"
    treatments: tuple[str, ...] = ("swap-norm", "freeze-batchnorm")
    static: bool = False
    noise: tuple[float, float, float] = (0.2, 0.3, 0.6)
    steps_needed: int = 5

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the noise at the batch normalisers.

        Args:
            history: of a run.

        Returns:
            One finding a stream, its layers ranked by noise; `[]` too without a batch normaliser.
        """
        findings = []
        reasons = []
        for stream in history.streams():
            series = normaliser_series(history, "batch-noise", stream)
            enough = [each for each in series if len(each.readings) >= self.steps_needed]
            noisy = self._noisy(enough)
            if noisy:
                findings.append(self._finding(noisy, len(enough)))
            if not normaliser_series(history, "running-lag", stream) or series:  # else all of them are frozen
                reasons.append(reason_against(history, stream, series, self.steps_needed, "the noise of a batch"))
        reason = next(filter(None, reasons), None if history.streams() else "no layer was observed")
        return Inconclusive(self.name, reason) if reason and not findings else findings

    def _noisy(self, series: list[Series]) -> list[Series]:
        stands = discoveries([sustained(each.values, self.noise[0]) for each in series])
        noisy = [each for each, stand in zip(series, stands, strict=True) if stand and each.median >= self.noise[0]]
        return sorted(noisy, key=lambda each: -each.median)

    def _finding(self, noisy: list[Series], judged: int) -> Finding:
        first = noisy[0]
        message = (
            f"the batch mean of '{first.site.label}' scatters by {number(first.median)} SD of its channel from batch "
            f"to batch (median of {plural(len(first.readings), 'observed step')}; {proof(first.typical)}): "
            f"{plural(first.samples, 'sample')} are worth {number(first.median**-2)} independent values a channel"
        )
        if len(noisy) > 1:
            message += f"; noisy too: {names([each.site for each in noisy[1:]])}"
        message += f"; {len(noisy)} of {plural(judged, 'batch normaliser')}"
        return Finding(
            self.name,
            graded(first.median, self.noise) or "info",
            tuple(each.site for each in noisy),
            message,
            tuple(each.typical for each in noisy),
            self.treatments,
            strength=first.median / self.noise[0],
        )
