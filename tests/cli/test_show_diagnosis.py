from __future__ import annotations

import io

from rich.console import Console

from holdfast.cli.show_diagnosis import show_diagnosis
from holdfast.core.finding import Diagnosis, Finding, Inconclusive
from holdfast.core.reading import Reading
from holdfast.core.site import Site

SITE = Site("sigmoid1", "input")
READING = Reading("saturated-fraction", SITE, 400, 0.31, "fraction", 128, lag=None)
FINDING = Finding(
    "saturated-units",
    "critical",
    (SITE,),
    "31 % of [bold]sigmoid1[/bold] is saturated.",
    (READING,),
    ("reinitialise",),
    6.2,
    1,
)


def shown(diagnosis: Diagnosis) -> str:
    console = Console(file=io.StringIO(), width=100)
    show_diagnosis(console, diagnosis)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_findings_come_with_evidence_then_the_verdict_then_what_was_not_seen() -> None:
    text = shown(
        Diagnosis(
            "r", 400, "Units saturate.", (FINDING,), (Inconclusive("nonfinite", "no loss"),), ("the gates of an LSTM",)
        )
    )
    order = [
        " 1  critical  saturated-units",
        "31 % of [bold]sigmoid1[/bold] is saturated.",  # a module's name is never markup
        "treatments: reinitialise",
        "Verdict  Units saturate.",
        "· nonfinite: no loss",
        "· the gates of an LSTM",
    ]
    places = [text.index(each) for each in order]
    assert places == sorted(places)


def test_no_finding_is_said_in_words() -> None:
    text = shown(Diagnosis("r", 400, "Nothing holds this run back.", ()))
    assert "none" in text
    assert "Verdict  Nothing holds this run back." in text
    assert "Inconclusive" not in text
    assert "nothing was left out" in text
