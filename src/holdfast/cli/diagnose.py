"""`holdfast diagnose RUN`: what is wrong with a run, ranked, with a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from holdfast.cli.console import output, print_json

FailOn = Literal["info", "warning", "critical"]  # core's Severity, without importing PyTorch for --help
FOUND = 1


def diagnose(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run; it may still be written.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Exit with 1 when a finding is at least this severe.")
    ] = "warning",
) -> None:
    """Say what is wrong with a run.

    Prints the findings, ranked, each with its evidence; one verdict; what watching cost; what was not seen.
    Exit code 0: nothing as severe as --fail-on; 1: a finding at least as severe; 2: RUN cannot be read.
    """
    from holdfast.api import Run
    from holdfast.cli.show_diagnosis import show_diagnosis
    from holdfast.core.finding import SEVERITIES

    with Run(run) as opened:
        diagnosis = opened.diagnose()
        accounts = opened.history.events("cadence")
    if as_json:
        print_json(diagnosis.as_dict() | {"monitor": [dict(event.data) for event in accounts]})
    else:
        show_diagnosis(output(), diagnosis, [event.message for event in accounts])
    worst = max((SEVERITIES.index(finding.severity) for finding in diagnosis), default=-1)
    if worst >= SEVERITIES.index(fail_on):
        raise typer.Exit(FOUND)
