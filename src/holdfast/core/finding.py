"""`Finding`, and the `Diagnosis` that ranks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from holdfast.core.reading import Reading
from holdfast.core.site import Site

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that fired.

    Args:
        rule: the rule's name.
        severity: how bad.
        sites: where, the worst first.
        message: one sentence that a person understands, with its figures.
        evidence: the readings that prove it, the strongest first.
        treatments: names of the treatments that answer it, the best first.
        strength: how far beyond the rule's threshold, as a ratio ≥ 1; ranks findings of equal severity.
        rank: place among the findings of a diagnosis; 0 until ranked, then from 1.
    """

    rule: str
    severity: Severity
    sites: tuple[Site, ...]
    message: str
    evidence: tuple[Reading, ...]
    treatments: tuple[str, ...] = ()
    strength: float = 1.0
    rank: int = 0

    def __str__(self) -> str:
        return f"[{self.severity}] {self.rule}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "rank": self.rank,
            "sites": [str(site) for site in self.sites],
            "message": self.message,
            "evidence": [reading.as_dict() for reading in self.evidence],
            "treatments": list(self.treatments),
        }


@dataclass(frozen=True, slots=True)
class Inconclusive:
    """A rule that could not decide, and why."""

    rule: str
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"rule": self.rule, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings of a run, ranked, with the verdict and what could not be judged or seen.

    Iterating gives the findings; as text it is what a person reads: the findings, the verdict, what was not seen.

    Example:
        >>> print(Diagnosis("runs/a", 10, "all is well", (), not_seen=("a fused attention",)))
        verdict: all is well
        not seen: a fused attention
    """

    run: str
    steps: int
    verdict: str
    findings: tuple[Finding, ...]
    inconclusive: tuple[Inconclusive, ...] = ()
    not_seen: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __str__(self) -> str:
        return "\n".join(
            [
                *(f"{each.rank}. {each}" for each in self.findings),
                f"verdict: {self.verdict}",
                *(f"inconclusive: {each.rule}: {each.reason}" for each in self.inconclusive),
                *(f"not seen: {each}" for each in self.not_seen),
            ]
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the object that `holdfast diagnose --json` prints."""
        return {
            "run": self.run,
            "steps": self.steps,
            "verdict": self.verdict,
            "findings": [finding.as_dict() for finding in self.findings],
            "inconclusive": [each.as_dict() for each in self.inconclusive],
            "not_seen": list(self.not_seen),
        }
