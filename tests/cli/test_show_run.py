from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from holdfast.cli.show_run import TOP, show_end, why_nothing
from holdfast.core.event import Event
from holdfast.core.finding import Diagnosis, Finding
from holdfast.core.site import Site
from holdfast.integrations.process import Outcome

FINDINGS = tuple(
    Finding("a-rule", "warning", (Site("fc", "input", stream="critic"),), f"Bad {rank}.", (), rank=rank)
    for rank in range(1, TOP + 3)
)


def said(streams: list[str], cadence: list[Event], findings: tuple[Finding, ...] = FINDINGS) -> list[str]:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_end(console, Diagnosis("run", 7, "The verdict.", findings), streams, cadence, Path("runs/a"))
    console.file.close()
    return console.export_text().splitlines()


def test_one_model_is_told_in_a_few_lines() -> None:
    assert said(["net"], [Event(7, "cadence", "took 1 %", data={"stream": "net"})]) == [
        "Holdfast watched 7 steps",
        " 1  warning  a-rule: Bad 1.",
        " 2  warning  a-rule: Bad 2.",
        " 3  warning  a-rule: Bad 3.",
        "    and 2 more",
        "Verdict  The verdict.",
        "took 1 %",
        "Next: holdfast report runs/a",
    ]


def test_of_several_models_each_line_says_which() -> None:
    accounts = [Event(7, "cadence", "took 1 %", data={"stream": name}) for name in ("critic", "actor")]
    assert said(["actor", "critic"], accounts, FINDINGS[:1]) == [
        "Holdfast watched 7 steps of actor, critic",
        " 1  warning  a-rule: critic: Bad 1.",
        "Verdict  The verdict.",
        "critic: took 1 %",
        "actor: took 1 %",
        "Next: holdfast report runs/a",
    ]


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        (Outcome(Path("x")), "the script made no torch optimiser"),
        (Outcome(Path("x"), built=2), "no optimiser made a step"),
        (
            Outcome(Path("x"), built=1, unfound="Adam"),
            "no module holds the parameters that Adam steps; type: with hf.watch(model, optimizer): train()",
        ),
    ],
)
def test_why_nothing_was_recorded(outcome: Outcome, sentence: str) -> None:
    assert why_nothing(outcome) == sentence
