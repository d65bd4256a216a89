"""Rule `collapsed-signal`: the samples cannot be told apart deep in the network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.diagnosis.spread import DEAD_SPREAD, dead_modules, spreads
from holdfast.diagnosis.wording import names, number, plural

_ALIVE = 32
"""Times the threshold: the spread of a signal that has not died yet."""


@dataclass(frozen=True, slots=True)
class CollapsedSignal:
    """Deep in the network the samples cannot be told apart: the signal is a constant.

    What it sees:
        At every input the spread: how much of the signal's RMS differs between samples (channel by channel, over
        samples and positions; the greater of the pooled ratio and the median channel's), its median over the observed
        steps. Fires below 2⁻¹⁰ ≈ 0.001, where the differences are within two units in the last place of float16; where
        more than half of the features are collapsed (SD below 1e-6 of the site's RMS) and not merely zero, as a
        rectifier's dead units are; and after such a layer, where nothing else feeds and no normaliser enlarges what is
        left. One such site is a warning, two or more are critical.

        Noise: the spread of n values has a relative error of 1/√(2n), and the threshold lies a factor of 300 below
        what healthy layers have (0.3 to 1), so eight values a channel are enough; medians over steps cover the rest.

        Whether the signal was dead from the start, or trained to death: alive is a spread 32 times the threshold at the
        first observed step.

    Why it matters:
        What comes after sees the same input for every sample and can only learn the mean of the targets: the loss stays
        at chance. No shift figure is to be believed at such a site, because it would be counted in units of nothing.

    When it is wrong:
        Inputs that are the same for all samples by design (position indices, a time step shared by the batch, a learned
        query) have no spread. A batch of copies has none either.

    Example:
        From '8' on the samples differ by 2e-4 of the signal and less; at the last layer by 2e-8.

    What to do:
        Dead from the start: reinitialise with the gain that the activation needs; insert-norm; replace-activation (a
        sigmoid's mean of ½ drowns the signal). Alive at first: scale-rate or warm-up, from fresh weights.

    References:
        Schoenholz et al. 2017, "Deep information propagation". Glorot & Bengio 2010.
    """

    name: str = "collapsed-signal"
    subject: str = "a dead signal"
    treatments: tuple[str, ...] = ("reinitialise", "insert-norm", "replace-activation", "scale-rate", "warm-up")
    dead_from_the_start: tuple[str, ...] = ("reinitialise", "insert-norm", "replace-activation")
    trained_to_death: tuple[str, ...] = ("scale-rate", "warm-up", "reinitialise", "insert-norm")
    static: bool = False
    spread: float = DEAD_SPREAD
    critical_sites: int = 2

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the spread of the signal at every input.

        Args:
            history: of a run.

        Returns:
            One finding a stream, its sites in the order of execution.
        """
        findings = []
        judged = False
        for stream in history.streams():
            seen = spreads(history, stream)
            collapsed = {
                reading.site: reading
                for reading in history.readings("collapsed-features")
                if reading.site.stream == stream and reading.site.phase == "train" and math.isfinite(reading.value)
            }
            judged |= bool(seen) or bool(collapsed)
            dead = dead_modules(history, stream, self.spread)
            sites = [site for site in dict.fromkeys((*seen, *collapsed)) if site.module in dead]
            if sites:
                order = list(dead)
                sites.sort(key=lambda site: order.index(site.module))
                findings.append(self._finding(sites, dead, seen, collapsed))
        if judged:
            return findings
        return Inconclusive(
            self.name,
            "neither channel statistics nor collapsed fractions were kept at any input; it needs one observed step "
            "with 8 samples",
        )

    def _finding(
        self,
        sites: list[Site],
        dead: dict[str, float],
        seen: dict[Site, list[Reading]],
        collapsed: dict[Site, Reading],
    ) -> Finding:
        all_sites = dict.fromkeys((*seen, *collapsed))
        known = [site for site in sites if math.isfinite(dead[site.module])]
        evidence = [collapsed[site] for site in sites if site in collapsed]
        strength = 1.0
        treatments = self.dead_from_the_start
        if known:
            least = min(known, key=lambda site: dead[site.module])
            value = dead[least.module]
            strength = self.spread / max(value, 1e-12)
            steps = len(seen[least])
            clearest = max(
                seen, key=lambda site: dead.get(site.module, math.inf) if site in sites else _median(seen[site])
            )
            message = (
                f"the samples cannot be told apart at the input of '{least.label}': they differ by {number(value)} of "
                f"the signal's RMS (median of {plural(steps, 'observed step')}; {number(_median(seen[clearest]))} at "
                f"'{clearest.label}'); so at {len(sites)} of {len(all_sites)} inputs seen, from '{sites[0].label}' on"
            )
            evidence.insert(0, min(seen[least], key=lambda reading: abs(reading.value - value)))
            first = min(seen[least], key=lambda reading: reading.step)
            if first.value >= _ALIVE * self.spread:
                treatments = self.trained_to_death
                message += f", though not from the start: {number(first.value)} at step {first.step}"
        else:
            message = (
                f"more than half of the features do not vary at {len(sites)} of {len(all_sites)} inputs seen: "
                f"{names(sites)} (median over the observed steps; at '{sites[0].label}' "
                f"{number(100 * collapsed[sites[0]].value)} % at step {collapsed[sites[0]].step}, "
                f"n = {collapsed[sites[0]].n})"
            )
        return Finding(
            self.name,
            "critical" if len(sites) >= self.critical_sites else "warning",
            tuple(sites),
            message + "; no drift figure is to be believed there",
            tuple(evidence),
            treatments,
            strength=strength,
        )


def _median(readings: list[Reading]) -> float:
    return float(np.median([reading.value for reading in readings]))
