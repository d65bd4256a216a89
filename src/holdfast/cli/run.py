"""`holdfast run train.py …`: an unmodified script is watched."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer

from holdfast.cli.console import note
from holdfast.integrations.options import Options
from holdfast.integrations.script import Script, end_as_interrupted, input_error


def run(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="The script; with -m, a module.", show_default=False)],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGUMENTS]...", help="The script's own, untouched.")
    ] = None,
    module: Annotated[bool, typer.Option("-m", help="Run a module, as python -m does.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Folder of the run.", show_default="runs/NAME of the script"),
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", metavar="B", help="The monitor's largest share of the bare run's time.")
    ] = 0.01,
    every: Annotated[
        str, typer.Option("--every", metavar="N|auto", help="Observe every so many steps, or as the budget allows.")
    ] = "auto",
    probe: Annotated[
        int, typer.Option("--probe", metavar="N", help="Samples of the first training batch to follow; 0 for none.")
    ] = 64,
) -> Callable[[], None]:
    """Watch an unmodified script.

    Output and exit code are the script's own; findings go to stderr when it has ended. Options of Holdfast stand
    before the script, everything behind its name belongs to the script.
    """
    program = Script(script, arguments or (), module=module)
    program.check()
    shown = out or Path("runs", script if module else Path(script).stem)
    options = Options(_writable(shown), _every(every), _share(budget), _count(probe))
    return partial(_launch, program, options, shown)


def _launch(program: Script, options: Options, shown: Path) -> None:
    atexit.register(_tell, program, shown, os.getpid())  # the first to be registered is the last to run
    program.watch(options)
    program.run()


def _every(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise input_error("--every auto or a whole number of steps ≥ 1", f"--every {text}", "type: --every auto")
    return int(text)


def _share(budget: float) -> float:
    if not 0 < budget <= 1:
        raise input_error(
            "a budget above 0 and at most 1", f"--budget {budget}", "type: --budget 0.01 for one per cent"
        )
    return budget


def _count(probe: int) -> int:
    if probe < 0:
        raise input_error("a number of samples ≥ 0", f"--probe {probe}", "type: --probe 64")
    return probe


def _writable(folder: Path) -> Path:
    """The folder's absolute path, if a run could be recorded there; it is made by the first step only."""
    place = Path(os.path.abspath(folder))
    there = next(each for each in (place, *place.parents) if os.path.lexists(each))
    try:
        with TemporaryDirectory(prefix=".holdfast-", dir=there):
            return place
    except OSError as error:
        got = f"--out {folder} ('{there}': {error.strerror})"
        raise input_error("a folder that can be written, for the run", got, "type: --out FOLDER") from error


def _tell(program: Script, shown: Path, pid: int) -> None:
    """Say what was found, after everything else that runs at exit."""
    if os.getpid() != pid:
        return
    try:
        if program.process is None:
            note("holdfast: nothing was recorded: the script did not import torch")
            return
        from holdfast.cli.show_run import show_run

        show_run(program.process, shown)
    except Exception as error:
        note(f"holdfast: {type(error).__name__}: {error} (type: holdfast diagnose {shown})")
    finally:
        if program.interrupted:
            end_as_interrupted()
