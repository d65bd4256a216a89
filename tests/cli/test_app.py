from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

import holdfast.cli
from holdfast.cli.app import Commands, app
from holdfast.core.errors import RunError

COMMANDS = ("run", "demo", "diagnose", "report", "explain", "doctor")


def failing(error: BaseException) -> typer.Typer:
    """The command line with one command, which fails."""
    small = typer.Typer(cls=Commands)

    @small.callback()
    def _group() -> None: ...

    @small.command()
    def fail() -> None:
        raise error

    return small


def test_every_command_tells_an_example(run: Callable[..., Result]) -> None:
    told = run("--help").stdout
    for command in COMMANDS:
        assert command in told
        shown = run(command, "--help")
        assert shown.exit_code == 0
        assert f"Example: holdfast {command}" in shown.stdout


def test_a_mistake_is_one_sentence_on_stderr_and_exit_code_two() -> None:
    result = CliRunner().invoke(failing(RunError("a run folder", "'x'", "type: holdfast demo")), ["fail"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "holdfast: expected a run folder; got 'x'; type: holdfast demo\n"


def test_a_full_disk_is_one_sentence_and_exit_code_two() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "runs/a")
    result = CliRunner().invoke(failing(error), ["fail"])
    assert (result.exit_code, result.stderr) == (2, "holdfast: No space left on device (runs/a)\n")


def test_ctrl_c_is_one_line_and_exit_code_130() -> None:
    result = CliRunner().invoke(failing(KeyboardInterrupt()), ["fail"])
    assert (result.exit_code, result.stderr) == (130, "holdfast: interrupted\n")


def test_an_error_of_ours_is_not_hidden() -> None:
    result = CliRunner().invoke(failing(ZeroDivisionError("a bug")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["demo", "--variant", "merry"],
        ["demo", "--steps", "0"],
        ["diagnose"],
        ["diagnose", "x", "--fail-on", "x"],
    ],
)
def test_a_wrong_word_is_a_usage_error(run: Callable[..., Result], words: list[str]) -> None:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error" in result.stderr


def test_the_version_is_told(run: Callable[..., Result]) -> None:
    assert run("--version").stdout == "holdfast 0.1.0\n"


def test_no_command_gives_help(run: Callable[..., Result]) -> None:
    assert "holdfast demo" in run().output


def test_help_imports_no_torch() -> None:
    # The package root is replaced, so that this looks at the commands alone.
    code = f"""
import sys, types
root = types.ModuleType("holdfast")
root.__path__ = [{str(Path(holdfast.cli.__file__).parents[1])!r}]
sys.modules["holdfast"] = root
from holdfast.cli.app import app
for words in (["--help"], ["demo", "--help"], ["diagnose", "x", "--fail-on", "no"]):
    try:
        app(words)
    except SystemExit:
        pass
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_script_is_installed_under_its_name() -> None:
    from importlib.metadata import entry_points

    (script,) = [each for each in entry_points(group="console_scripts") if each.name == "holdfast"]
    assert script.value == "holdfast.cli:main"
    assert script.load() is holdfast.cli.main
    assert app.info.name == "holdfast"
