"""Rule `exploding-gradient`: the gradient grows on its way back, or in time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.diagnosis.evidence import exceedance
from holdfast.diagnosis.gradient_flow import Flow, few_layers, gradient_flow
from holdfast.diagnosis.severity import graded
from holdfast.diagnosis.wording import number, plural


@dataclass(frozen=True, slots=True)
class ExplodingGradient:
    """The gradient grows out of bounds: from layer to layer on its way back, or from step to step.

    What it sees:
        By depth: as vanishing-gradient, in the other direction: by the trend of both profiles the first layer has more
        than 100 times the last layer's gradient; above 10,000 times it is critical.
        In time: the global gradient norm of every step. Fires when its median over the last quarter of the run is 100
        times that of the first quarter and more steps of the last quarter exceed the first half's 95th percentile than
        chance explains (binomial); 10,000 times is critical. 40 steps are needed, so that a quarter has ten.

    Why it matters:
        The first layers take steps that the last layers' rate was not meant for; one such step can undo the run.

    When it is wrong:
        A run that leaves a plateau at the start (a nearly dead signal that comes alive) has a gradient that grows for
        the better. Single spikes are not seen here. Under batch normalisation at the start a growth of ×1.2 per layer
        is normal, which reaches 100 only beyond 25 layers.

    Example:
        The gradient grows on its way back from 0.01 at '18' to 5.2 at '0', ×2 per layer.

    What to do:
        clip the global norm; scale-rate; insert-norm, reinitialise or (residual branches) scale-residual when it grows
        by depth; warm-up when it grew in the first steps.

    References:
        Pascanu, Mikolov & Bengio 2013, "On the difficulty of training recurrent neural networks". Yang et al. 2019, "A
        mean field theory of batch normalization" (π/(π−1) ≈ 1.47 per layer in squared norm).
    """

    name: str = "exploding-gradient"
    subject: str = "an exploding gradient"
    treatments: tuple[str, ...] = ("clip", "scale-rate", "insert-norm", "reinitialise", "scale-residual", "warm-up")
    static: bool = False
    grows_to: float = 1e2
    critical_at: float = 1e4
    steps_for_agreement: int = 5
    steps_needed: int = 40

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the gradient norms by depth and in time.

        Args:
            history: of a run.

        Returns:
            Up to two findings a stream, or why it could not be decided.
        """
        flows = [gradient_flow(history, stream) for stream in history.streams()]
        able = [flow for flow in flows if flow.profiles]
        findings = [self._by_depth(flow) for flow in able if self._explodes(flow)]
        judged = bool(able)
        for stream in history.streams():
            steps, norms = history.values("gradient-norm", stream)
            finite = np.isfinite(norms)
            if finite.sum() < self.steps_needed:
                continue
            judged = True
            findings += self._in_time(stream, steps[finite], norms[finite])
        if judged:
            return findings
        return Inconclusive(
            self.name, f"{few_layers(flows)}; growth in time needs the global norm of {self.steps_needed} steps"
        )

    def _explodes(self, flow: Flow) -> bool:
        if flow.ratio() < self.grows_to or any(each.slope().high >= 0 for each in flow.profiles):
            return False
        span = max(each.span for each in flow.profiles)
        return flow.steps < self.steps_for_agreement or flow.agreement(-1, math.log(self.grows_to) / span / 2) <= 0.05

    def _by_depth(self, flow: Flow) -> Finding:
        ratio = flow.ratio()
        return Finding(
            self.name,
            graded(ratio, (1.0, self.grows_to, self.critical_at)) or "info",
            flow.profiles[0].sites,
            f"the gradient grows on its way back {flow.told()}",
            flow.evidence("gradient-slope"),
            ("insert-norm", "reinitialise", "clip"),
            strength=math.log(ratio) / math.log(self.grows_to),
        )

    def _in_time(self, stream: str, steps: NDArray[np.int64], norms: NDArray[np.float64]) -> list[Finding]:
        quarter = len(norms) // 4
        early, late = float(np.median(norms[:quarter])), float(np.median(norms[-quarter:]))
        high = float(np.quantile(norms[: len(norms) // 2], 0.95))
        beyond = int(np.sum(norms[-quarter:] > high))
        if early <= 0 or late / early < self.grows_to or exceedance(beyond, quarter) > 0.05:
            return []
        growth = late / early
        site = Site("", "weight_grad", stream=stream)
        evidence = (
            Reading("gradient-norm", site, int(steps[-1]), late, Unit.NORM, quarter, noise_floor=high),
            Reading("gradient-norm", site, int(steps[quarter - 1]), early, Unit.NORM, quarter),
        )
        message = (
            f"the global gradient norm grew ×{number(growth)} in training: median {number(early)} over the first "
            f"{plural(quarter, 'step')}, {number(late)} over the last {quarter}, of which {beyond} exceed the first "
            f"half's 95th percentile of {number(high)}"
        )
        severity = graded(growth, (1.0, self.grows_to, self.critical_at)) or "info"
        return [
            Finding(
                self.name,
                severity,
                (site,),
                message,
                evidence,
                ("clip", "scale-rate", "warm-up"),
                strength=math.log(growth) / math.log(self.grows_to),
            )
        ]
