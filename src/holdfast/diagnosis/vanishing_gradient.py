"""Rule `vanishing-gradient`: the gradient shrinks on its way back to the first layers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive, Severity
from holdfast.core.protocols import History
from holdfast.diagnosis.gradient_flow import Flow, few_layers, gradient_flow, update_spread
from holdfast.diagnosis.severity import graded
from holdfast.diagnosis.wording import number


@dataclass(frozen=True, slots=True)
class VanishingGradient:
    """The gradient shrinks from layer to layer on its way back: the first layers hardly learn.

    What it sees:
        Gradient norms by depth at the same steps: of the gradient at the layers' outputs, and of the weight gradients
        times the weights' norms. Fires when the trend (Theil–Sen over the layers' medians) of *both* says that the
        first layer has less than 1/100 of the last layer's gradient, the whole 95 % interval of the slope is on that
        side, and the observed steps agree (sign test, from five steps on). Below 1/10,000 it is critical: in float16 a
        gradient of 1 at the top is then near the smallest normal number (6e-5) at the bottom.

        Norms of all layers that are small *together*, as in a run that has converged, make no trend. Norms that fall in
        time make none either: under a normaliser ‖G‖ scales as 1/‖W‖, which ‖G‖·‖W‖ takes out.

    Why it matters:
        With one learning rate for all layers the first ones stay at their random start while the last ones fit what
        comes out of them.

    When it is wrong:
        Optimisers that rescale each weight (Adam) do not mind: where the first layers' updates, relative to their
        weights, are at least a tenth of the last layers', it is a remark only. Depth is the order of execution;
        skip connections carry gradient that a chain would lose, and the norms already contain that.

    Example:
        The gradient falls from 0.12 at '20' to 1.1e-4 at '0', ×0.5 per layer.

    What to do:
        insert-norm between the layers; reinitialise with the activation's gain; replace-activation of saturating ones.

    References:
        Hochreiter 1991; Bengio, Simard & Frasconi 1994; Glorot & Bengio 2010; Pascanu et al. 2013.
    """

    name: str = "vanishing-gradient"
    subject: str = "a vanishing gradient"
    treatments: tuple[str, ...] = ("insert-norm", "reinitialise", "replace-activation")
    static: bool = False
    shrinks_to: float = 1e-2
    critical_at: float = 1e-4
    steps_for_agreement: int = 5
    rescaled: float = 0.1

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the gradient norms by depth.

        Args:
            history: of a run.

        Returns:
            One finding a stream, or why it could not be decided.
        """
        flows = [gradient_flow(history, stream) for stream in history.streams()]
        able = [flow for flow in flows if flow.profiles]
        if not able:
            return Inconclusive(self.name, few_layers(flows))
        return [self._finding(history, flow) for flow in able if self._vanishes(flow)]

    def _vanishes(self, flow: Flow) -> bool:
        if flow.ratio() > self.shrinks_to or any(each.slope().low <= 0 for each in flow.profiles):
            return False
        span = max(each.span for each in flow.profiles)
        return flow.steps < self.steps_for_agreement or flow.agreement(1, -math.log(self.shrinks_to) / span / 2) <= 0.05

    def _finding(self, history: History, flow: Flow) -> Finding:
        ratio = flow.ratio()
        severity: Severity = graded(1 / ratio, (1.0, 1 / self.shrinks_to, 1 / self.critical_at)) or "info"
        message = f"the gradient shrinks on its way back {flow.told()}"
        kept = update_spread(history, flow)
        if kept >= self.rescaled:
            severity = "info"
            message += (
                f"; the optimiser makes up for it (update ratio of the first layers ÷ the last ones: {number(kept)})"
            )
        return Finding(
            self.name,
            severity,
            flow.profiles[0].sites,
            message,
            flow.evidence("gradient-slope"),
            self.treatments,
            strength=math.log(ratio) / math.log(self.shrinks_to),
        )
