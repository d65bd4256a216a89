"""`Study`: a question with its protocol and decision rule fixed beforehand, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.reading import Reading


@dataclass(frozen=True, slots=True)
class Study:
    """A claim tested on this machine.

    Args:
        name: lower case, words joined by hyphens.
        question: one sentence that ends with a question mark.
        protocol: what is run, in sentences.
        seeds: fixed beforehand.
        decision_rule: which figures give which verdict, fixed beforehand.
        verdict: what the figures say; `""` before the study ran.
        readings: the figures.
    """

    name: str
    question: str
    protocol: str
    seeds: tuple[int, ...]
    decision_rule: str
    verdict: str = ""
    readings: tuple[Reading, ...] = ()
