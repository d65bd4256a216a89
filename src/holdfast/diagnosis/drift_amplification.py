"""Rule `drift-amplification`: drift grows from layer to layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.units import Unit
from holdfast.diagnosis.depth import profile_of, weight_layers
from holdfast.diagnosis.evidence import discoveries, sustained
from holdfast.diagnosis.severity import graded
from holdfast.diagnosis.shifting_input import ShiftingInput
from holdfast.diagnosis.wording import number, plural


@dataclass(frozen=True, slots=True)
class DriftAmplification:
    """Each layer hands on more drift than it received: small updates below become large shifts above.

    What it sees:
        The slope of the logarithm of parameter drift (lag 1) over depth, at the inputs of the layers with weights
        whose drift is above its noise floor. Fires when the Theil–Sen slope of the layers' medians is at least ln 2 per
        layer with its whole 95 % interval above 0, the observed steps agree (sign test), the drift grows at least
        tenfold over the layers seen, and the greatest is at least 0.05 reference SD per step: what is amplified must
        be worth it. Independent updates of L like layers add up to √L, updates in one direction to L: ln 2 per layer
        (1,000 times over ten layers) is neither. Seen: healthy networks ×1.0 to ×1.5 per layer, ten sigmoid layers of
        Glorot gain 4 ×2.9.

    Why it matters:
        The last layers are moved by the sum of all updates below, enlarged: no learning rate suits both ends, and a
        lower one stalls the first layers. A normaliser between layers stops the growth.

    When it is wrong:
        The first layers of any network receive almost no drift, so short profiles are steep by nature (at least four
        layers are asked for). Depth is the order of execution: parallel branches look deeper than they are.

    Example:
        Drift grows by ×2.9 per layer (95 % interval 2.6 to 3.3, 10 layers), from 0.001 to 46 reference SD per step.

    What to do:
        insert-norm between the layers; reinitialise when the gain of the layers is the cause.

    References:
        Raghu et al. 2017, "On the expressive power of deep neural networks" (trajectory growth). Ioffe & Szegedy 2015,
        section 1 ("small changes to the network parameters amplify as the network becomes deeper").
    """

    name: str = "drift-amplification"
    subject: str = "internal covariate shift that grows with depth"
    treatments: tuple[str, ...] = ("insert-norm", "reinitialise")
    static: bool = False
    slope: float = math.log(2.0)
    growth: float = 10.0
    greatest: tuple[float, float, float] = (0.05, 0.25, 1.0)
    layers_needed: int = 4
    steps_needed: int = 5

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the drift by depth.

        Args:
            history: of a run.

        Returns:
            One finding a stream, or why it could not be decided.
        """
        findings = []
        most_layers = most_steps = 0
        judged = False
        for stream in history.streams():
            near, _ = ShiftingInput().drifts(history, stream)
            moved = [s for s, stands in zip(near, discoveries([each.noise_p for each in near]), strict=True) if stands]
            quiet = len([each for each in near if len(each.readings) >= self.steps_needed]) >= self.layers_needed
            profile = profile_of(moved, weight_layers(history, stream))
            slopes = profile.slopes()
            most_layers, most_steps = max(most_layers, len(profile.sites)), max(most_steps, len(slopes))
            if len(profile.sites) < self.layers_needed or len(slopes) < self.steps_needed:
                judged |= quiet  # enough was observed, and nothing moves
                continue
            judged = True
            fit, medians = profile.slope(), profile.medians
            growth = medians[-1] / medians[0]
            severity = graded(float(medians.max()), self.greatest)
            if fit.value < self.slope or fit.low <= 0 or growth < self.growth or severity is None:
                continue
            if sustained(slopes, self.slope) > 0.05:
                continue
            middle = float(np.median(slopes))
            reading = Reading(
                self.name,
                profile.sites[-1],
                profile.steps[-1],
                fit.value,
                Unit.PER_LAYER,
                len(profile.sites),
                interval=(fit.low, fit.high),
                lag=1,
            )
            message = (
                f"drift grows by ×{number(fit.factor)} per layer (95 % interval {number(math.exp(fit.low))} to "
                f"{number(math.exp(fit.high))}, {plural(len(profile.sites), 'layer')}, median over "
                f"{plural(len(slopes), 'observed step')} ×{number(math.exp(middle))}): from {number(medians[0])} "
                f"reference SD per step at '{profile.sites[0].label}' to {number(medians[-1])} at "
                f"'{profile.sites[-1].label}'"
            )
            evidence = (reading, *(each.typical for each in reversed(moved) if each.site in profile.sites))
            findings.append(
                Finding(
                    self.name,
                    severity,
                    profile.sites[::-1],
                    message,
                    evidence,
                    self.treatments,
                    strength=fit.value / self.slope,
                )
            )
        if judged:
            return findings
        return Inconclusive(
            self.name,
            f"drift above its noise was read at {plural(most_layers, 'layer')} and {plural(most_steps, 'step')}; it "
            f"needs {self.layers_needed} layers and {self.steps_needed} observed steps",
        )
