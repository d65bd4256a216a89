"""Rule `update-ratio`: a step moves weights by too much, or by next to nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.diagnosis.depth import weights_only
from holdfast.diagnosis.evidence import FALSE_DISCOVERY_RATE, Series, discoveries, exceedance, series_of
from holdfast.diagnosis.severity import graded
from holdfast.diagnosis.wording import names, number, plural


@dataclass(frozen=True, slots=True)
class UpdateRatio:
    """A step moves a layer's weights by too much, or by next to nothing.

    What it sees:
        ‖ΔW‖ / ‖W‖ of every weight of two or more dimensions (biases and gains start at 0 or 1), with the optimiser's
        real step; its median over the observed steps, where the steps agree (sign test) and Benjamini–Hochberg over the
        weights stands.

        Too much: 0.02 a remark, 0.1 a warning, 0.5 critical: at 0.1 ten steps can replace the weights. Too little:
        below 1e-7, about the resolution of float32 (2⁻²⁴ ≈ 6e-8): most elements do not change at all; and below
        1e-3 of the median weight of the same network. Seen: 1e-3 to 1e-2 (plain SGD and Adam on small networks that
        learn well, 0.014 at most); about 1e-3 is the usual advice.

    Why it matters:
        Above, the layer is replaced rather than trained, and everything after it moves. Below, the layer is frozen
        without anyone having said so.

    When it is wrong:
        Weights that start at or near zero (residual gains, zero-initialised heads) have large ratios at first. Under a
        normaliser only the direction matters: the ratio is then a rotation, and 0.02 is unremarkable. Updates of
        exactly zero (frozen weights, a rate of 0) are left out.

    Example:
        A step moves 'head.weight' by 0.21 of its norm (median of 80 observed steps).

    What to do:
        scale-rate (for that layer's group); warm-up and clip when only the first steps are too large; insert-norm when
        a layer gets no gradient.

    References:
        Goyal et al. 2017, "Accurate, large minibatch SGD" (warm-up). You et al. 2017, "Large batch training of
        convolutional networks" (the ratio by layer). Karpathy 2019, "A recipe for training neural networks" (1e-3).
    """

    name: str = "update-ratio"
    subject: str = "the size of the updates"
    treatments: tuple[str, ...] = ("scale-rate", "warm-up", "clip", "insert-norm")
    static: bool = False
    large: tuple[float, float, float] = (0.02, 0.1, 0.5)
    small: float = 1e-7
    small_beside: float = 1e-3

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the update ratios.

        Args:
            history: of a run.

        Returns:
            Up to two findings a stream, or why it could not be decided.
        """
        findings = []
        most, needed = 0, self._needed(1)
        judged = False
        for stream in history.streams():
            series = [
                Series(each.site, moved)
                for each in weights_only(
                    history, series_of(history, "update-ratio", stream=stream, port="update"), stream
                )
                if (moved := tuple(reading for reading in each.readings if reading.value > 0))
            ]
            most = max([most, *(len(each.readings) for each in series)])
            needed = max([needed, self._needed(len(series))])
            series = [each for each in series if len(each.readings) >= self._needed(len(series))]
            judged |= bool(series)
            fast = self._agreed(series, self.large[0], above=True)
            if fast:
                findings.append(self._fast(sorted(fast, key=lambda each: -each.median), len(series)))
            usual = sorted(each.median for each in series)[len(series) // 2] if series else 0.0
            slow = [each for each in self._agreed(series, self.small, above=False) if self._beside(each, usual, series)]
            if slow:
                findings.append(self._slow(sorted(slow, key=lambda each: each.median), series))
        if judged:
            return findings
        return Inconclusive(
            self.name,
            f"the update ratio of a weight was read at {plural(most, 'step')}; it needs {needed} observed "
            f"steps in which the weight moved",
        )

    def _needed(self, weights: int) -> int:
        """So many steps that one weight of all can stand out: ½ⁿ ≤ 0.05 / weights."""
        return math.ceil(math.log2(max(weights, 1) / FALSE_DISCOVERY_RATE))

    def _beside(self, series: Series, usual: float, all_series: list[Series]) -> bool:
        greatest = max(each.median for each in all_series)
        return series.median < self.small_beside * max(usual, greatest)

    def _agreed(self, series: list[Series], threshold: float, *, above: bool) -> list[Series]:
        counts = [int(((each.values >= threshold) if above else (each.values < threshold)).sum()) for each in series]
        stands = discoveries(
            [exceedance(count, len(each.readings), 0.5) for count, each in zip(counts, series, strict=True)]
        )
        return [
            each
            for each, stand in zip(series, stands, strict=True)
            if stand and ((each.median >= threshold) if above else (each.median < threshold))
        ]

    def _fast(self, fast: list[Series], observed: int) -> Finding:
        first = fast[0]
        message = (
            f"a step moves '{first.site.label}' by {number(first.median)} of its norm (median of "
            f"{plural(len(first.readings), 'observed step')}, n = {first.samples:,} elements; about 0.001 is usual)"
        )
        if len(fast) > 1:
            message += f"; above {self.large[0]} too: {names([each.site for each in fast[1:]])}"
        message += f"; {len(fast)} of {plural(observed, 'weight')}"
        return Finding(
            self.name,
            graded(first.median, self.large) or "info",
            tuple(each.site for each in fast),
            message,
            tuple(each.typical for each in fast),
            ("scale-rate", "warm-up", "clip"),
            strength=first.median / self.large[0],
        )

    def _slow(self, slow: list[Series], series: list[Series]) -> Finding:
        first, greatest = slow[0], max(series, key=lambda each: each.median)
        message = (
            f"a step moves '{first.site.label}' by {number(first.median)} of its norm (median of "
            f"{plural(len(first.readings), 'observed step')}, n = {first.samples:,} elements), less than float32 "
            f"resolves, while '{greatest.site.label}' moves by {number(greatest.median)}: {len(slow)} of "
            f"{plural(len(series), 'weight')} hardly learn"
        )
        return Finding(
            self.name,
            "warning",
            tuple(each.site for each in slow),
            message,
            tuple(each.typical for each in (*slow, greatest)),
            ("insert-norm", "scale-rate"),
            strength=1.0,
        )
