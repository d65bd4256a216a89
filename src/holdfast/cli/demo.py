"""`holdfast demo`: train a network that suffers, watch it, say why, treat it, prove that it helped."""

from __future__ import annotations

import shlex
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from holdfast.cli.console import note, notes, output, print_json

if TYPE_CHECKING:
    from holdfast.clinic.cure import Cure
    from holdfast.core.finding import Diagnosis
    from holdfast.lab.dataset import Dataset
    from holdfast.lab.demo import Outcome

# The same words as in `lab`, spelt out so that `--help` need not import PyTorch; a test compares them.
Variant = Literal["suffering", "dead", "healthy"]
DataName = Literal["digits", "mnist", "fashion-mnist", "reviews"]

RUNS = Path("runs")


def demo(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Folder of the data; digits need none.", show_default=False)
    ] = None,
    variant: Annotated[Variant, typer.Option(help="Which network to train.")] = "suffering",
    data: Annotated[DataName, typer.Option(help="What to train on; all but digits need DIR.")] = "digits",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the split and the order of the batches.")] = 0,
    proof_seeds: Annotated[int, typer.Option(min=0, help="Trainings an arm of the proof; 0 for no treatment.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the run; runs/demo-VARIANT by default.", show_default=False),
    ] = None,
    report: Annotated[Path, typer.Option(metavar="FILE", help="Where the report goes.")] = Path("demo-report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a network that suffers, watch it, say why, treat it, prove that it helped.

    Prints the layers, the findings, the prescription and its proof, and writes a report.
    Variants: suffering (saturates and drifts), dead (its signal dies on the way), healthy (nothing is wrong).
    """
    note("loading PyTorch and the data …")
    from holdfast.api import Run
    from holdfast.cli.show_cure import cure_as_dict, show_cure
    from holdfast.cli.show_diagnosis import show_diagnosis
    from holdfast.cli.show_layers import layers_as_dicts, show_layers
    from holdfast.lab.demo import read_data

    _check_place(report)
    samples = read_data(data, directory, seed=seed)
    folder = out if out is not None else free_folder(RUNS / "-".join(["demo", *([data] if directory else []), variant]))
    outcome = _train(samples, folder, variant=variant, steps=steps, seed=seed)
    note("reading the run …")
    with Run(folder) as run:
        diagnosis = run.diagnose()
        cure = _treat(samples, outcome, diagnosis, seeds=proof_seeds) if proof_seeds else None
        note("writing the report …")
        page = Path(run.report(report, evidence=cure)).resolve()
        if as_json:
            told = _outcome_as_dict(outcome, samples, variant=variant, seed=seed, page=page)
            layers = layers_as_dicts(run.history, diagnosis)
            cured = None if cure is None else cure_as_dict(cure)
            print_json({"demo": told, "layers": layers, "diagnosis": diagnosis.as_dict(), "cure": cured})
            return
        console = output()
        _show_outcome(console, outcome, samples)
        show_layers(console, run.history, diagnosis)
        console.print()
        show_diagnosis(console, diagnosis)
        if cure is not None:
            console.print()
            show_cure(console, cure)
        kept = None if cure is None or cure.receipt is None else cure.receipt.treatment
        _show_next(console, diagnosis, kept, folder=folder, page=page, variant=variant)


def free_folder(wanted: Path) -> Path:
    """A folder that is not there yet: the one wanted, or the same with the next free number.

    Args:
        wanted: the first choice.

    Returns:
        A path at which nothing is.
    """
    if not wanted.exists():
        return wanted
    return next(path for number in count(2) if not (path := wanted.with_name(f"{wanted.name}-{number}")).exists())


def _check_place(report: Path) -> None:
    """Say before the training, not after it, that the report has no place to go."""
    from holdfast.core.errors import InputError

    if report.is_dir() or not report.absolute().parent.is_dir():
        why = "is a folder" if report.is_dir() else "lies in a folder that does not exist"
        raise InputError("a file for the report", f"{str(report)!r}, which {why}", "type: --report demo-report.html")


def _train(samples: Dataset, folder: Path, *, variant: Variant, steps: int, seed: int) -> Outcome:
    """Train with a progress bar; Ctrl-C keeps the run and says how to read it."""
    from holdfast.lab.demo import run_demo

    done = 0
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
        console=notes(),
    )
    try:
        with bar:
            task = bar.add_task("training", total=steps, loss="…")

            def tick(step: int, loss: float) -> None:
                nonlocal done
                done = step
                bar.update(task, completed=step, loss=f"{loss:.3f}")

            return run_demo(samples, folder, variant=variant, steps=steps, seed=seed, on_step=tick)
    except KeyboardInterrupt:
        kept = f"the run is kept; type: holdfast diagnose {shlex.quote(str(folder))}" if done else "no step was done"
        note(f"holdfast: interrupted after {done} of {steps} steps; {kept}")
        raise typer.Exit(130) from None


def _treat(samples: Dataset, outcome: Outcome, diagnosis: Diagnosis, *, seeds: int) -> Cure:
    """Prescribe, prove and apply with a progress bar; Ctrl-C leaves the run, which is on disk."""
    from holdfast.lab.demo import treat_demo

    bar = Progress(
        TextColumn("proof {task.fields[number]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=notes(),
    )
    try:
        with bar:
            task = bar.add_task("proof", total=None, number="")
            proofs = count(1)

            def tick(done: int, total: int) -> None:
                if done == 1:
                    bar.update(task, number=next(proofs))
                bar.update(task, completed=done, total=total)

            return treat_demo(samples, outcome, diagnosis, seeds=seeds, on_step=tick)
    except KeyboardInterrupt:
        note(
            f"holdfast: interrupted during the proof; the run is kept; "
            f"type: holdfast diagnose {shlex.quote(str(outcome.run))}"
        )
        raise typer.Exit(130) from None


def _show_outcome(console: Console, outcome: Outcome, samples: Dataset) -> None:
    from rich.text import Text

    from holdfast.figures.wording import number

    console.print()
    console.print(
        Text.assemble(
            ("Trained  ", "bold"),
            f"{outcome.setup.build}; plain SGD, learning rate {outcome.setup.rate:g}, "
            f"{outcome.steps} steps of {outcome.batch} samples",
        )
    )
    console.print(Text.assemble(("Data     ", "bold"), f"{samples.source}; {len(samples.inputs):,} to train on"))
    console.print(
        Text.assemble(
            ("Outcome  ", "bold"),
            f"loss {number(outcome.first_loss)} → {number(outcome.last_loss)} (means over 20 steps; guessing gives "
            f"{number(outcome.chance_loss)}); {100 * outcome.accuracy:.0f} % of {outcome.held_out:,} held-out samples "
            f"right (guessing: {100 / samples.classes:.0f} %)",
        )
    )
    console.print()


def _show_next(
    console: Console, diagnosis: Diagnosis, kept: str | None, *, folder: Path, page: Path, variant: Variant
) -> None:
    """The paths, and lines to type; of treatments the one that was kept, else the first that the findings name."""
    from rich.text import Text

    other: Variant = "healthy" if variant != "healthy" else "suffering"
    rows = []
    if diagnosis.findings:
        first = diagnosis.findings[0]
        rows.append(("what the first finding means", f"holdfast explain {first.rule}"))
        if kept is not None:
            rows.append(("what was kept", f"holdfast explain {kept}"))
        elif first.treatments:
            rows.append(("what would answer it", f"holdfast explain {first.treatments[0]}"))
    rows += [
        ("the findings again, for a script", f"holdfast diagnose {shlex.quote(str(folder))} --json"),
        ("the same with another network", f"holdfast demo --variant {other}"),
        ("in your own training loop", 'with hf.watch(model, optimizer, run="runs/mine", probe=x0): train(…)'),
    ]
    console.print()
    console.print(Text.assemble(("Report  ", "bold"), str(page), "  (open it in a browser)"), soft_wrap=True)
    console.print(Text.assemble(("Run     ", "bold"), str(folder)), soft_wrap=True)
    console.print()
    console.print(Text("What to type next", style="bold"))
    for what, line in rows:
        console.print(Text.assemble(f"  {what:<34}", (line, "cyan")), soft_wrap=True)


def _outcome_as_dict(outcome: Outcome, samples: Dataset, *, variant: Variant, seed: int, page: Path) -> dict[str, Any]:
    from holdfast.core.reading import plain

    return {
        "data": samples.name,
        "variant": variant,
        "network": outcome.setup.build,
        "learning_rate": outcome.setup.rate,
        "seed": seed,
        "steps": outcome.steps,
        "batch": outcome.batch,
        "first_loss": plain(outcome.first_loss),
        "last_loss": plain(outcome.last_loss),
        "chance_loss": plain(outcome.chance_loss),
        "accuracy": outcome.accuracy,
        "held_out": outcome.held_out,
        "run": str(outcome.run),
        "report": str(page),
    }
