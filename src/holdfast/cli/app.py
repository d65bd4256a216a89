"""The `holdfast` command and what all its commands share: exit codes, and errors as one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from holdfast.cli.console import note
from holdfast.cli.demo import demo
from holdfast.cli.diagnose import diagnose
from holdfast.cli.doctor import doctor
from holdfast.cli.explain import explain
from holdfast.cli.report import report
from holdfast.cli.run import run

INPUT_ERROR = 2
INTERRUPTED = 130
"""128 + SIGINT, as shells give it."""


class Commands(TyperGroup):
    """The group of all commands: turns a user's mistake into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Args:
            ctx: the parsed command line.

        Returns:
            What the command returned. A function is handed to `main`, to be called out of the command line's reach.

        Raises:
            Exit: with 2 after a mistake that the user can mend, with 130 after Ctrl-C.
        """
        try:
            result = super().invoke(ctx)
            if callable(result):
                ctx.obj.append(result)
            return result
        except KeyboardInterrupt:
            note("holdfast: interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            note(f"holdfast: {sentence}")
            raise typer.Exit(INPUT_ERROR) from None


app = typer.Typer(
    name="holdfast",
    cls=Commands,
    help="Watch a network in training, say what is wrong with it and why.",
    epilog="Start here: holdfast demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.command(
    epilog="Example: holdfast run --out runs/a train.py --lr 0.1",
    # The first word that is no option of ours is the script, and all behind it are the script's.
    context_settings={"allow_interspersed_args": False},
)(run)
app.command(epilog="Example: holdfast demo --data mnist ~/mnist --variant dead")(demo)
app.command(epilog="Example: holdfast diagnose runs/latest --fail-on critical --json")(diagnose)
app.command(epilog="Example: holdfast report runs/latest -o report.html")(report)
app.command(epilog="Example: holdfast explain saturated-units")(explain)
app.command(epilog="Example: holdfast doctor --json")(doctor)


def main() -> None:
    """Run the command line: the entry point of the script `holdfast`."""
    scripts: list[Callable[[], None]] = []
    hook = sys.excepthook
    try:
        app(obj=scripts)
    except KeyboardInterrupt:  # before a command took over
        sys.exit(INTERRUPTED)
    except SystemExit:
        if not scripts:
            raise
    # Out here nothing of ours handles what a user's script raises; typer leaves a hook behind.
    sys.excepthook = hook
    scripts[0]()


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        print(f"holdfast {version('holdfast')}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Watch a network in training, say what is wrong with it and why."""


def _sentence(error: Exception) -> str | None:
    """What to tell the user of a mistake that is theirs to mend, `None` of one that is ours."""
    ours = sys.modules.get("holdfast.core.errors")  # not imported yet (it brings PyTorch): so it is none of those
    if ours is not None and isinstance(error, ours.HoldfastError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):  # a full or read-only disk
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{where}"
    return None
