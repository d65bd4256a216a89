"""Rule `shifting-input`: the inputs of layers move because the parameters below them move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from holdfast.core.finding import Finding, Inconclusive, Severity
from holdfast.core.protocols import History
from holdfast.core.site import Site
from holdfast.diagnosis.culprits import Culprits, culprits
from holdfast.diagnosis.evidence import Series, discoveries, series_of
from holdfast.diagnosis.severity import graded, worst
from holdfast.diagnosis.spread import DEAD_SPREAD, dead_modules
from holdfast.diagnosis.wording import names, number, plural, proof


class Moving(NamedTuple):
    """A site whose input moves: its readings, the figure compared, and the threshold that it reached."""

    series: Series
    figure: float
    severity: Severity
    strength: float


@dataclass(frozen=True, slots=True)
class ShiftingInput:
    """The inputs of layers move under them: internal covariate shift.

    What it sees:
        Parameter drift at the input of every layer: the same samples, forwarded before and after the parameters moved.
        At lag 1 (the batch just trained on, its median over the observed steps) and at lag 100 (the fixed probe, the
        lower quartile over the later half of the run: what three observations of four reach). A site counts when it
        exceeds its noise floor more often than 5 % of the steps explain (binomial, Benjamini–Hochberg over all sites
        and both lags) and its figure reaches a threshold.

        Thresholds, in reference SD: 0.05 a step is a remark (in a straight line, one SD in 20 steps), 0.25 a warning
        (one SD in 4 steps), 1 critical (the whole distribution moves by its own width between two updates). Over 100
        steps: 1, 3 and 10. Seen on digits, 400 steps: ReLU, tanh and normalised networks that learn well have medians
        of 0.001 to 0.22 a step and settle below 1 per 100 steps; ten sigmoid layers of Glorot gain 4 at rate 1 reach
        46.

        Where the run holds steps taken apart (the measure `attribution`), the layers whose updates moved the worst site
        are named with their parts of its shift, or it is said that no one layer did.

    Why it matters:
        A layer fits its weights to inputs that are gone at the next step. Above about one SD a step, what it learned
        is about another distribution.

    When it is wrong:
        Drift is not harm: every network that learns drifts, most of all in its first steps, and large drift in a
        direction that later layers ignore costs nothing. Only a paired run with the cure proves harm. Drift is counted
        in the signal's own SD, so where the signal is nearly constant the figure is huge and means nothing: sites whose
        samples differ by less than 0.1 % of the signal's RMS are left out (see collapsed-signal). A rectifier's feature
        that was nearly dead at the reference time has a tiny SD and can lift a site's lag-100 figure alone.

    Example:
        Input of '18': 5.1 reference SD per step (median of 81 observed steps).

    What to do:
        insert-norm before the worst layer; reinitialise where the drift comes with a bad start; scale-rate or warm-up
        when the updates are too large (see update-ratio).

    References:
        Ioffe & Szegedy 2015, "Batch normalization", section 2. Santurkar et al. 2018, "How does batch normalization
        help optimization?" (drift need not be what harms).
    """

    name: str = "shifting-input"
    subject: str = "internal covariate shift"
    treatments: tuple[str, ...] = ("insert-norm", "scale-rate", "warm-up", "reinitialise")
    static: bool = False
    per_step: tuple[float, float, float] = (0.05, 0.25, 1.0)
    per_hundred: tuple[float, float, float] = (1.0, 3.0, 10.0)
    steps_needed: int = 5
    far_needed: int = 3
    dead_below: float = DEAD_SPREAD

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the drift readings at the inputs.

        Args:
            history: of a run.

        Returns:
            One finding a stream, its sites ranked by drift; or why it could not be decided.
        """
        findings: list[Finding] = []
        reasons: list[str] = []
        judged = False
        for stream in history.streams():
            near, far = self.drifts(history, stream)
            believed = [series for series in near if len(series.readings) >= self.steps_needed]
            distant = [series for series in far if len(series.readings) >= self.far_needed]
            if believed or distant:
                judged = True
                moving = self._moving(believed, distant)
                if moving:
                    modules = len({each.site.module for each in (*believed, *distant)})
                    findings.append(self._finding(moving, modules, culprits(history, moving[0].series.site)))
            reasons.append(self._reason(history, stream, near, far))
        if findings or (judged and not any(reasons)):
            return findings
        return Inconclusive(self.name, next(filter(None, reasons), "no layer was observed"))

    def drifts(self, history: History, stream: str) -> tuple[list[Series], list[Series]]:
        """Drift that can be believed, by site: at lag 1 on the step probe, and at lag 100 on the fixed probe."""
        dead = dead_modules(history, stream, self.dead_below)
        near = series_of(history, "parameter-drift", stream=stream, port="input", lag=1, longest=1)
        # A lag of the decade 100 may be anything up to 999; the threshold is about 100 steps.
        far = series_of(history, "parameter-drift", stream=stream, port="input", phase="probe", lag=100, longest=199)
        return (
            [series for series in near if series.site.module not in dead],
            [series for series in far if series.site.module not in dead],
        )

    def _moving(self, near: list[Series], far: list[Series]) -> list[Moving]:
        stands = discoveries([series.noise_p for series in (*near, *far)])
        figures = [series.median for series in near]
        figures += [float(np.quantile(series.later_half().values, 0.25)) for series in far]
        ladders = [self.per_step] * len(near) + [self.per_hundred] * len(far)
        moving = []
        for series, stand, figure, ladder in zip((*near, *far), stands, figures, ladders, strict=True):
            severity = graded(figure, ladder)
            if stand and severity:
                moving.append(Moving(series, figure, severity, figure / ladder[0]))
        return sorted(moving, key=lambda each: -each.strength)

    def _finding(self, moving: list[Moving], judged: int, cause: Culprits) -> Finding:
        first = moving[0]
        # A layer that moves on both probes stands once, where it moves more.
        by_module: dict[str, Site] = {}
        for each in moving:
            by_module.setdefault(each.series.site.module, each.series.site)
        sites = tuple(by_module.values())
        if first.series.readings[0].lag == 1:
            over = f"per step (median of {plural(len(first.series.readings), 'observed step')}"
        else:
            later = len(first.series.later_half().readings)
            over = f"per 100 steps (lower quartile of the last {plural(later, 'reading')} of the fixed probe"
        message = (
            f"the input of '{first.series.site.label}' moves by {number(first.figure)} reference SD {over}; "
            f"{proof(first.series.typical)}) because the parameters before it move"
        )
        if len(sites) > 1:
            others = names(sites[1:])
            message += f"; so do {others}: {len(sites)} of {judged} layers that could be judged"
        if cause.words:
            message += f"; step by step, at '{first.series.site.label}', {cause.words}"
        return Finding(
            self.name,
            worst([each.severity for each in moving]),
            sites,
            message,
            (*(each.series.typical for each in moving), *cause.evidence),
            self.treatments,
            strength=first.strength,
        )

    def _reason(self, history: History, stream: str, near: list[Series], far: list[Series]) -> str:
        """Why a stream cannot be judged, `""` when it can."""
        dead = dead_modules(history, stream, self.dead_below)
        seen = {site.module for site in history.sites(port="input", phase="train", stream=stream)}
        if dead and 2 * len(dead) >= len(seen):
            most = max((series.median for series in near), default=0.0)
            return (
                f"at {len(dead)} of {len(seen)} inputs the samples cannot be told apart, and drift in units of such a "
                f"signal means nothing (at the others it is at most {number(most)} reference SD per step)"
            )
        if any(len(series.readings) >= self.steps_needed for series in near):
            return ""
        if any(len(series.readings) >= self.far_needed for series in far):
            return ""
        most_steps = max((len(series.readings) for series in near), default=0)
        return (
            f"parameter drift was read at {plural(most_steps, 'step')}; it needs {self.steps_needed} observed steps "
            f"(or {self.far_needed} readings of the fixed probe over 100 steps)"
        )
