"""Rule `loss-spike`: the loss leaves its own level upwards, and what it came from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from holdfast.core.finding import Finding, Inconclusive, Severity
from holdfast.core.protocols import History
from holdfast.core.site import Site
from holdfast.diagnosis.wording import number, plural
from holdfast.measures.spike_cause import Cause, spike_cause
from holdfast.measures.spikes import FIRST_JUDGED, LONG, Spike, of_history


@dataclass(frozen=True, slots=True)
class LossSpike:
    """The loss jumps out of its own noise, for one step or for many.

    What it sees:
        The loss of every step, on the logarithm, by the measure spikes: at most one false alarm in 10,000 steps. One
        that passes is a remark; one of five steps or more that doubles the loss is a warning; one from which the loss
        has not come back at the end of the run (its last eight steps still at twice the level before) is critical.
        The worst is laid, as far as the record says, to its batch (nothing before was unusual, and the next batch was
        back to normal), to the update of the step before (update ratio, gradient norm or learning rate stood out), or
        to a site whose readings stood out first, with the lead.

    Why it matters:
        A spike that lasts throws away what was learnt since the last good state; one that passes is a warning of the
        next, and names the batch or the layer to look at.

    When it is wrong:
        A jump on purpose (another data set, a new schedule, a loss of another weight) is a jump. Losses whose batches
        differ by tails heavier than a log-normal's (one rare class, sequences of very unequal length) have passing
        spikes by nature. The origin is read off what was recorded, not tried: measures.replay_spike tries it. What
        grows slower than a spike is not seen here: see exploding-gradient.

    Example:
        The loss spiked at 2 of 2,000 steps, the worst at step 1,212: ×8.1 its usual 0.31, for 23 steps.

    What to do:
        clip the global norm when one step threw the run off; scale-rate or warm-up when spikes come back; insert-norm
        at the site that drifted first; leave the batch out when it is the batch, and go back to a state from before
        when the loss does not come back.

    References:
        Chowdhery et al. 2022, "PaLM", section 5.1. Takase et al. 2023, "Spike no more: stabilizing the pre-training of
        large language models".
    """

    name: str = "loss-spike"
    subject: str = "a loss that spikes"
    treatments: tuple[str, ...] = ("clip", "scale-rate", "warm-up", "insert-norm")
    static: bool = False
    doubled: float = math.log(2)
    last_steps: int = 8

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the losses.

        Args:
            history: of a run.

        Returns:
            One finding a stream whose loss spiked, or why it could not be decided.
        """
        findings = []
        most = 0
        for stream in history.streams():
            losses = history.values("loss", stream)[1]
            usable = losses[np.isfinite(losses) & (losses > 0)]
            most = max(most, len(usable))
            found = of_history(history, "loss", stream) if len(usable) >= FIRST_JUDGED else []
            if found:
                # The end of the run says whether it came back.
                end = float(np.median(usable[-self.last_steps :]))
                findings.append(self._finding(history, stream, found, end, len(losses)))
        if most >= FIRST_JUDGED:
            return findings
        return Inconclusive(
            self.name, f"{plural(most, 'step')} with a loss above zero were recorded; it needs {FIRST_JUDGED}"
        )

    def _finding(self, history: History, stream: str, found: list[Spike], end: float, steps: int) -> Finding:
        graded = [(self._severity(spike, end), spike) for spike in found]
        order = ("info", "warning", "critical")
        severity, worst = max(graded, key=lambda each: (order.index(each[0]), each[1].rise))
        cause = spike_cause(history, worst, stream)
        first = "the loss spiked once in" if len(found) == 1 else f"the loss spiked {plural(len(found), 'time')} in"
        where = "at" if len(found) == 1 else "the worst at"
        message = (
            f"{first} {plural(steps, 'step')}, {where} step {worst.step}: ×{number(math.exp(worst.rise))} its usual "
            f"{number(worst.level)}, for {plural(worst.lasted, 'step')}"
            + ("; it has not come back" if severity == "critical" else "")
            + f"; {_told(cause)}"
        )
        site = Site("", "output", stream=stream)
        sites = (*dict.fromkeys(each.site for each in cause.precursors), site)
        ranked = sorted(found, key=lambda spike: (spike is not worst, -spike.rise))
        return Finding(
            self.name,
            severity,
            sites[:3],
            message,
            tuple(spike.reading(site) for spike in ranked[:5]),
            _answers(cause),
            strength=worst.rise / worst.line,
        )

    def _severity(self, spike: Spike, end: float) -> Severity:
        if spike.lasted < LONG or spike.rise < self.doubled:
            return "info"
        return "critical" if math.log(end / spike.level) >= self.doubled else "warning"


def _told(cause: Cause) -> str:
    words = {
        "data": "it came from that batch",
        "update": "it came from the update before",
        "precursor": "a site drifted first",
        "unknown": "its origin cannot be told",
    }
    return f"{words[cause.origin]} ({cause.reason})"


def _answers(cause: Cause) -> tuple[str, ...]:
    if cause.origin == "precursor":
        return ("insert-norm", "scale-rate", "clip")
    if cause.update and cause.update[0][0] == "learning-rate":
        return ("scale-rate", "warm-up", "clip")
    return ("clip", "scale-rate", "warm-up")
