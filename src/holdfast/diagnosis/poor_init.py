"""Rule `poor-init`: at the first step the signal or the gradient grows or shrinks from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.diagnosis.depth import Profile, profile_of, weight_layers
from holdfast.diagnosis.evidence import Series, series_of
from holdfast.diagnosis.severity import graded, worst
from holdfast.diagnosis.spread import spreads
from holdfast.diagnosis.wording import number, plural
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.summary import Summary


@dataclass(frozen=True, slots=True)
class PoorInit:
    """At the first step the signal, or the gradient, grows or shrinks by a factor from layer to layer.

    What it sees:
        At the first observed step (the tenth at latest), over the layers with weights in the order of execution: the SD
        between samples of the signal at their inputs (spread × RMS, see collapsed-signal; the whole site's SD where no
        channels were kept) and the norm of the gradient at their outputs. Fires when the Theil–Sen slope is a factor of
        1.5 per layer or more (or 1/1.5 or less) with its whole 95 % interval on one side of 1, and by that trend the
        figure changes more than tenfold over the depth: tenfold is a remark, a hundredfold a warning, 1,000-fold
        critical. 1.5 per layer is 57 over ten layers; He and Glorot initialisations with their own activation were seen
        within 0.85 and 1.35, ten sigmoid layers of Glorot gain 4 at 0.6, PyTorch's default at 0.4 (ReLU) and 0.12
        (sigmoid).

        Noise: the SD of 64 samples has a relative error of 9 %, the interval over layers covers it.

    Why it matters:
        The first updates decide where the run goes, and a signal that arrives at a thousandth gives the last layers
        nothing to use and the first layers no gradient.

    When it is wrong:
        Depth is the order of execution; the branches of a network are not one chain. Input far from SD 1 makes the
        first layer odd, not the slope. A network resumed from a checkpoint has no first step: its first observed step
        is late.

    Example:
        At step 1 the signal shrinks ×0.4 per layer (median slope: ×1.0e-04 over 10 layers; measured 0.27 at '0',
        2.5e-05 at '20'). The trend is that of the typical layer: one odd layer moves the ends, not the trend.

    What to do:
        reinitialise with the gain of the activation (He for ReLU, Glorot × 5/3 for tanh, orthogonal, LSUV); insert-norm
        makes the start matter less; scale-residual where it grows from one residual branch to the next.

    References:
        Glorot & Bengio 2010; He et al. 2015, "Delving deep into rectifiers"; Mishkin & Matas 2016, "All you need is a
        good init".
    """

    name: str = "poor-init"
    subject: str = "the initialisation"
    treatments: tuple[str, ...] = ("reinitialise", "insert-norm", "scale-residual")
    static: bool = False
    per_layer: float = 1.5
    total: tuple[float, float, float] = (1e1, 1e2, 1e3)
    latest_first: int = 10
    layers_needed: int = 3

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the first observed step.

        Args:
            history: of a run.

        Returns:
            One finding a stream, or why it could not be decided.
        """
        findings = []
        reason = "no layer was observed"
        judged = False
        for stream in history.streams():
            layers = weight_layers(history, stream)
            forward = profile_of(self._signal(history, stream), layers)
            gradients = [
                self._first(each) for each in series_of(history, "gradient-norm", stream=stream, port="grad_output")
            ]
            backward = profile_of(gradients, layers)
            profiles = [each for each in (forward, backward) if len(each.sites) >= self.layers_needed]
            early = [each for each in profiles if each.steps[0] <= self.latest_first]
            if early:
                judged = True
                finding = self._finding(early, forward)
                findings += [] if finding is None else [finding]
            elif profiles:
                reason = (
                    f"the first observed step is {profiles[0].steps[0]}, too late to tell how training began; it needs "
                    f"one of the first {self.latest_first}"
                )
            else:
                most = max(len(forward.sites), len(backward.sites))
                reason = (
                    f"{plural(most, 'layer')} with weights seen at the first step; a trend needs {self.layers_needed}"
                )
        return findings if judged else Inconclusive(self.name, reason)

    def _first(self, series: Series) -> Series:
        return Series(series.site, series.readings[:1])

    def _signal(self, history: History, stream: str) -> list[Series]:
        """SD between samples at every input, at its first observed step."""
        spread_at = spreads(history, stream)
        found = []
        for site in history.sites(port="input", phase="train", stream=stream):
            figure = _from_spread(history, spread_at.get(site, [])) or _from_summary(history, site)
            if figure is not None and math.isfinite(figure.value) and figure.value > 0:
                found.append(Series(site, (figure,)))
        return found

    def _finding(self, profiles: list[Profile], forward: Profile) -> Finding | None:
        told, evidence, sites, levels, strength = [], [], [], [], 1.0
        for profile in profiles:
            slope = profile.slope()
            change = math.exp(abs(slope.value) * profile.span)
            level = graded(change, self.total)
            if level is None or abs(slope.value) < math.log(self.per_layer) or slope.low * slope.high <= 0:
                continue
            onward = profile is forward
            # The gradient runs the other way: a norm that grows with depth is one that shrinks on its way.
            turned = slope.value if onward else -slope.value
            start, end = (0, -1) if onward else (-1, 0)
            values = profile.medians
            told.append(
                f"the {'signal' if onward else 'gradient'} {'grows' if turned > 0 else 'shrinks'} "
                f"×{number(math.exp(turned))} per layer (median slope: ×{number(math.exp(turned * profile.span))} over "
                f"{plural(profile.span, 'layer')}; measured {number(float(values[start]))} at "
                f"'{profile.sites[start].label}', {number(float(values[end]))} at '{profile.sites[end].label}')"
            )
            levels.append(level)
            sites += [profile.sites[end], profile.sites[start]]
            reading = Reading(
                "signal-slope" if onward else "gradient-slope",
                profile.sites[end],
                profile.steps[0],
                slope.value,
                Unit.PER_LAYER,
                len(profile.sites),
                interval=(slope.low, slope.high),
            )
            evidence += [
                reading,
                replace(reading, measure=_measure(onward), value=float(values[end]), unit=_unit(onward), interval=None),
            ]
            strength = max(strength, math.log(change) / math.log(self.total[0]))
        if not told:
            return None
        step, layers = profiles[0].steps[0], max(len(each.sites) for each in profiles)
        return Finding(
            self.name,
            worst(levels),
            tuple(dict.fromkeys(sites)),
            f"at step {step} {' and '.join(told)} (SD between samples, L2 norm of gradients; {layers} layers)",
            tuple(evidence),
            self.treatments,
            strength=strength,
        )


def _from_spread(history: History, readings: Sequence[Reading]) -> Reading | None:
    """Spread × RMS: the part of the signal that differs between samples, in the signal's own unit."""
    if not readings:
        return None
    first = readings[0]
    for step, summary in history.summaries(first.site):
        if step == first.step and isinstance(summary, Summary):
            return replace(first, measure="signal-sd", value=first.value * summary.moments.rms, unit=Unit.ACTIVATION)
        if step > first.step:
            break
    for step, channels in history.channels(first.site):
        if step == first.step and isinstance(channels, ChannelMoments):
            variance = channels.variance[channels.count > 1]
            sd = float(np.sqrt(variance.mean())) if len(variance) else math.nan
            return replace(first, measure="signal-sd", value=sd, unit=Unit.ACTIVATION)
    return None


def _from_summary(history: History, site: Site) -> Reading | None:
    """SD of the whole site, differences between channels included: all there is without channel statistics."""
    for step, summary in history.summaries(site):
        if isinstance(summary, Summary) and summary.moments.count > 1:
            moments = summary.moments
            return Reading("signal-sd", site, step, moments.sd, Unit.ACTIVATION, moments.count)
    return None


def _measure(forward: bool) -> str:
    return "signal-sd" if forward else "gradient-norm"


def _unit(forward: bool) -> str:
    return Unit.ACTIVATION if forward else Unit.NORM
