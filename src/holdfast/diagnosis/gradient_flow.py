"""Gradient norms by depth: what `vanishing-gradient` and `exploding-gradient` both read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.units import Unit
from holdfast.diagnosis.depth import Profile, Slope, profile_of, weight_layers, weights_only
from holdfast.diagnosis.evidence import Series, series_of, sustained
from holdfast.diagnosis.wording import number, plural

LAYERS_NEEDED = 3


@dataclass(frozen=True, slots=True)
class Flow:
    """Gradients by depth in one stream.

    Args:
        stream: which model.
        signal: profile of the gradient norm at the layers' outputs; without layers when it was not read.
        weights: profile of ‖G‖·‖W‖ (of ‖G‖ where no weight norm was read).
    """

    stream: str
    signal: Profile
    weights: Profile

    @property
    def profiles(self) -> list[Profile]:
        """Those with enough layers."""
        return [each for each in (self.signal, self.weights) if len(each.sites) >= LAYERS_NEEDED]

    def ratio(self) -> float:
        """Gradient at the first layer ÷ gradient at the last, by the fitted trend; of both profiles the one nearer 1.

        A trend that one of the two does not show is none: a layer whose weights were scaled before a normaliser has a
        small gradient for no harm (‖G‖ ∝ 1/‖W‖, so ‖G‖·‖W‖ stays), and a layer with few weights a small ‖G‖.
        """
        logs = [-each.slope().value * each.span for each in self.profiles]
        if not logs or min(logs) < 0 < max(logs):
            return 1.0
        return math.exp(min(logs, key=abs))

    def slope(self) -> Slope:
        """Of ln gradient over depth, of the profile that `ratio` took. Positive: it shrinks on its way back."""
        return min((each.slope() for each in self.profiles), key=lambda slope: abs(slope.value))

    def agreement(self, direction: int, per_layer: float) -> float:
        """P-value that the observed steps do not show a slope of this size in this direction (sign test)."""
        return max(sustained(direction * each.slopes(), per_layer) for each in self.profiles)

    @property
    def steps(self) -> int:
        """Observed."""
        return min((len(each.slopes()) for each in self.profiles), default=0)

    def evidence(self, measure: str) -> tuple[Reading, ...]:
        """The slope, and the first and the last layer's gradient."""
        profile = self.profiles[0]
        slope = self.slope()
        first, last = profile.sites[0], profile.sites[-1]
        step = profile.steps[-1]
        medians = profile.medians
        unit = Unit.NORM
        return (
            Reading(
                measure,
                first,
                step,
                slope.value,
                Unit.PER_LAYER,
                len(profile.sites),
                interval=(slope.low, slope.high),
            ),
            Reading("gradient-norm", first, step, float(medians[0]), unit, self.steps),
            Reading("gradient-norm", last, step, float(medians[-1]), unit, self.steps),
        )

    def told(self) -> str:
        """First and last layer's gradient and the factor per layer, in words."""
        profile, slope = self.profiles[0], self.slope()
        medians = profile.medians
        return (
            f"from {number(float(medians[-1]))} at '{profile.sites[-1].label}' to {number(float(medians[0]))} at "
            f"'{profile.sites[0].label}' (L2 norm, median of {plural(self.steps, 'observed step')}), "
            f"×{number(math.exp(-slope.value))} per layer (95 % interval {number(math.exp(-slope.high))} to "
            f"{number(math.exp(-slope.low))}, {plural(len(profile.sites), 'layer')})"
        )


def gradient_flow(history: History, stream: str) -> Flow:
    """Read gradient norms by depth.

    Args:
        history: of a run.
        stream: which model.

    Returns:
        Both profiles.
    """
    layers = weight_layers(history, stream)
    signal = profile_of(series_of(history, "gradient-norm", stream=stream, port="grad_output"), layers)
    gradients = weights_only(history, series_of(history, "gradient-norm", stream=stream, port="weight_grad"), stream)
    norms = {
        (reading.site.module, reading.site.leaf, reading.step): reading.value
        for reading in history.readings("weight-norm")
        if reading.site.stream == stream
    }
    weights = profile_of([_scaled(each, norms) for each in gradients] if norms else gradients, layers)
    return Flow(stream, signal, weights)


def _scaled(series: Series, norms: dict[tuple[str, str, int], float]) -> Series:
    """‖G‖·‖W‖ at each step."""
    site = series.site
    return Series(
        site,
        tuple(
            replace(reading, value=reading.value * norms.get((site.module, site.leaf, reading.step), math.nan))
            for reading in series.readings
        ),
    )


def few_layers(flows: list[Flow]) -> str:
    """Why gradients by depth cannot be judged."""
    most = max((len(each.sites) for flow in flows for each in (flow.signal, flow.weights)), default=0)
    if not most:
        return "no gradient norm was read; it needs one observed step with a backward pass"
    return f"gradient norms of {plural(most, 'layer')} with weights were read; a trend over depth needs {LAYERS_NEEDED}"


def update_spread(history: History, flow: Flow) -> float:
    """Median update ratio of the first third of the layers ÷ that of the last third; NaN when it was not read."""
    layers = [site.module for site in flow.profiles[0].sites]
    ratios = series_of(history, "update-ratio", stream=flow.stream, port="update")
    by_module = {each.site.module: each.median for each in weights_only(history, ratios, flow.stream)}
    third = max(1, len(layers) // 3)
    first = [by_module[path] for path in layers[:third] if path in by_module]
    last = [by_module[path] for path in layers[-third:] if path in by_module]
    if not first or not last or float(np.median(last)) <= 0:
        return math.nan
    return float(np.median(first)) / float(np.median(last))
