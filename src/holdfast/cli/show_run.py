"""What `holdfast run` says on stderr when the script has ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from holdfast.cli.console import note, notes
from holdfast.core.event import Event
from holdfast.core.finding import Diagnosis
from holdfast.diagnosis.diagnose import diagnose
from holdfast.integrations.process import Outcome, WatchedProcess
from holdfast.store.reader import RunReader

TOP = 3
"""Findings told; `holdfast diagnose` tells all."""


def show_run(process: WatchedProcess, shown: Path) -> None:
    """End the watch and print the verdict, the first findings, the account, and where to look next.

    Args:
        process: the watch.
        shown: the run's folder as the user knows it.
    """
    process.close()
    if not process.leads:
        return
    outcome = process.outcome()
    if not outcome.attempts:
        note(f"holdfast: nothing was recorded: {why_nothing(outcome)}")
        return
    with RunReader(outcome.folder, attempt=outcome.attempts[0]) as run:
        show_end(notes(), diagnose(run), run.streams(), run.events("cadence"), shown)
    if outcome.left_out:
        note(f"{outcome.left_out} more models were not watched: a run takes only so many")


def why_nothing(outcome: Outcome) -> str:
    """Why a script left no run behind, and what to do where something can be done.

    Args:
        outcome: without attempts.
    """
    if outcome.unfound is not None:
        return (
            f"no module holds the parameters that {outcome.unfound} steps;"
            " type: with hf.watch(model, optimizer): train()"
        )
    if outcome.built:
        return "no optimiser made a step"
    return "the script made no torch optimiser"


def show_end(
    console: Console, diagnosis: Diagnosis, streams: Sequence[str], cadence: Sequence[Event], shown: Path
) -> None:
    """Print a diagnosis in a few lines.

    Args:
        console: where to.
        diagnosis: of the run.
        streams: names of the models watched.
        cadence: the account of each stream, in the order in which they ended.
        shown: the run's folder.
    """
    several = len(streams) > 1
    models = f" of {', '.join(streams)}" if several else ""
    console.print(Text(f"Holdfast watched {diagnosis.steps} steps{models}", style="bold"))
    for finding in diagnosis.findings[:TOP]:
        where = f"{finding.sites[0].stream}: " if several and finding.sites else ""
        console.print(Text(f"{finding.rank:>2}  {finding.severity}  {finding.rule}: {where}{finding.message}"))
    if len(diagnosis.findings) > TOP:
        console.print(Text(f"    and {len(diagnosis.findings) - TOP} more"))
    console.print(Text(f"Verdict  {diagnosis.verdict}", style="bold"))
    for event in cadence:
        console.print(Text(f"{event.data['stream']}: {event.message}" if several else event.message))
    console.print(Text(f"Next: holdfast report {shown}"))
