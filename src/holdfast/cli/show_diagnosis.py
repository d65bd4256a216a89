"""How a diagnosis looks in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from holdfast.core.finding import Diagnosis, Finding, Severity

_STYLES: dict[Severity, str] = {"critical": "bold red", "warning": "bold yellow", "info": "bold blue"}


def show_diagnosis(console: Console, diagnosis: Diagnosis, accounts: Sequence[str] = ()) -> None:
    """Print findings in their order, then the verdict, then what could not be judged, what was not seen, and the cost.

    Args:
        console: where to.
        diagnosis: ranked.
        accounts: what watching cost, a sentence for each watch that has ended.
    """
    console.print(Text("Findings", style="bold"))
    if not diagnosis.findings:
        console.print(_indented("none"))
    for finding in diagnosis:
        _show_finding(console, finding)
    console.print()
    console.print(Text.assemble(("Verdict  ", "bold"), (diagnosis.verdict, "bold")))
    for title, sentences in (
        ("Inconclusive", [f"{each.rule}: {each.reason}" for each in diagnosis.inconclusive]),
        ("Not seen", list(diagnosis.not_seen) or ["nothing was left out that Holdfast knows of"]),
        ("Monitor", list(accounts)),
    ):
        if sentences:
            console.print()
            console.print(Text(title, style="bold"))
            for sentence in sentences:
                console.print(_indented(f"· {sentence}", by=2))


def _show_finding(console: Console, finding: Finding) -> None:
    style = _STYLES[finding.severity]
    console.print(
        Text.assemble(f"{finding.rank:>2}  ", (finding.severity, style), "  ", (finding.rule, "bold"), style="")
    )
    console.print(_indented(finding.message))
    if finding.treatments:
        console.print(_indented(f"treatments: {', '.join(finding.treatments)}", style="dim"))


def _indented(text: str, *, style: str = "", by: int = 4) -> Padding:
    return Padding(Text(text, style=style), (0, 0, 0, by), expand=False)
