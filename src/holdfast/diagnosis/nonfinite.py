"""Rule `nonfinite`: NaN or infinity in the loss, the gradient or a site."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.core.event import Event
from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.diagnosis.wording import names, plural
from holdfast.stats.summary import Summary


@dataclass(frozen=True, slots=True)
class NonFinite:
    """NaN or infinity appeared: from there on the run computes nothing.

    What it sees:
        The monitor's events of a non-finite loss (the batch was replayed exactly, and the first operation whose result
        was not finite named); the loss and the global gradient norm of every step; and, where one of these is not
        finite or no loss was recorded, the counts of NaN and ±inf at every observed site. One is enough: no noise makes
        a NaN.

    Why it matters:
        One NaN in a weight spreads to every output at the next step and never leaves.

    When it is wrong:
        −inf on purpose (masks of attention scores) is counted at the site that holds it. Mixed precision with a loss
        scaler meets infinite gradients by design and skips those steps: gradients alone, with every loss finite, make
        a warning only.

    Example:
        The loss was not finite at step 212; the first operation that broke is 'log' in 'head'.

    What to do:
        Mend the input when the input broke; scale-rate, clip or warm-up when the weights or the gradient grew until
        they overflowed; insert-norm when an activation did.

    References:
        IEEE 754-2019; Micikevicius et al. 2018, "Mixed precision training".
    """

    name: str = "nonfinite"
    subject: str = "a loss or signal that is not finite"
    treatments: tuple[str, ...] = ("scale-rate", "clip", "warm-up", "insert-norm", "scale-input")
    static: bool = False

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read events, losses and counts.

        Args:
            history: of a run.

        Returns:
            One finding for what the monitor located, else one a stream; or why it could not be decided.
        """
        events = list(history.events("nonfinite"))
        findings = [self._located(events, _losses_are_finite(history))] if events else []
        judged = bool(events)
        for stream in history.streams():
            steps, losses = history.values("loss", stream)
            broken = steps[~np.isfinite(losses)]
            norms = history.values("gradient-norm", stream)[1]
            # Reading every summary of a long run takes long, and a site whose NaN reaches neither loss nor gradient
            # (a mask) does no harm.
            suspect = not len(losses) or len(broken) > 0 or not np.isfinite(norms).all()
            counted = self._counted(history, stream) if suspect else []
            judged |= len(losses) > 0 or counted is not None
            if not findings and (len(broken) or counted):
                findings.append(self._unlocated(history, stream, broken.tolist(), counted or []))
        if judged:
            return findings
        return Inconclusive(self.name, "no loss and no counts were recorded; one observed step is enough")

    def _located(self, events: list[Event], losses_finite: bool) -> Finding:
        first = min(events, key=lambda event: event.step)
        kind = str(first.data.get("kind", ""))
        detail = str(first.data.get("detail", "")).rstrip(".")
        where, operation = str(first.data.get("where", "")), str(first.data.get("operation", ""))
        message = f"step {first.step}: {first.message.rstrip('.')}"
        if detail and detail not in message:
            message += f"; {detail}"
        elif operation and operation not in message:
            message += f"; the first operation that broke is '{operation}'" + (f" in '{where}'" if where else "")
        if len(events) > 1:
            message += f"; {len(events)} such steps in all, the last {max(event.step for event in events)}"
        site = first.site or Site(where, "input" if kind == "input" else "output")
        evidence = (Reading("nonfinite", site, first.step, float(len(events)), Unit.COUNT, len(events)),)
        gradients_only = losses_finite and all(event.data.get("kind") == "gradient" for event in events)
        return Finding(
            self.name,
            "warning" if gradients_only else "critical",
            (site,),
            message,
            evidence,
            self._answers(kind),
            strength=float(len(events)),
        )

    def _answers(self, kind: str) -> tuple[str, ...]:
        if kind == "input":
            return ("scale-input",)
        return tuple(each for each in self.treatments if each != "scale-input")

    def _counted(self, history: History, stream: str) -> list[tuple[int, Site, int, int]] | None:
        """`(step, site, not finite, total)` of the first bad step of each site; `None` without any summary."""
        found, any_seen = [], False
        for site in history.sites(stream=stream):
            for step, statistic in history.summaries(site):
                if not isinstance(statistic, Summary):
                    continue
                any_seen = True
                if statistic.counts.nonfinite:
                    found.append((step, site, statistic.counts.nonfinite, statistic.counts.total))
                    break
        return sorted(found, key=lambda each: each[0]) if any_seen else None

    def _unlocated(
        self, history: History, stream: str, broken: list[int], counted: list[tuple[int, Site, int, int]]
    ) -> Finding:
        parts, evidence = [], []
        if broken:
            total = len(history.values("loss", stream)[0])
            parts.append(
                f"the loss was not finite at {len(broken)} of {plural(total, 'step')}, first at step {broken[0]}"
            )
        if counted:
            step, site, bad, total = counted[0]
            parts.append(
                f"{bad} of {total} values at the {site.port.replace('_', ' ')} of '{site.label}' were not finite at "
                f"step {step}"
                + (f"; later too: {names([each[1] for each in counted[1:]])}" if len(counted) > 1 else "")
            )
            evidence = [
                Reading("nonfinite", where, at, float(number), Unit.COUNT, of) for at, where, number, of in counted
            ]
        else:
            evidence = [Reading("loss", Site("", "output", stream=stream), broken[0], float("nan"), Unit.LOSS, 1)]
        gradients_only = not broken and all(site.port == "grad_output" for _, site, _, _ in counted)
        inputs_first = (
            bool(counted) and counted[0][1].port == "input" and counted[0][1].module in _fed_by_model(history, stream)
        )
        return Finding(
            self.name,
            "warning" if gradients_only else "critical",
            tuple(dict.fromkeys(each[1] for each in counted)),
            "; ".join(parts),
            tuple(evidence),
            self._answers("input" if inputs_first else "operation"),
            strength=float(max(1, len(broken))),
        )


def _losses_are_finite(history: History) -> bool:
    return all(np.isfinite(history.values("loss", stream)[1]).all() for stream in history.streams())


def _fed_by_model(history: History, stream: str) -> set[str]:
    structure = history.structure(stream)
    return set() if structure is None else {target for source, target in structure.edges if source == ""}
