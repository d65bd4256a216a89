"""Runs the command as a user does, in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from holdfast.cli.app import app

COMMAND = [
    sys.executable,
    "-c",
    # A shell that runs the tests in the background has Ctrl-C ignored, and its children inherit that.
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);from holdfast.cli import main; main()",
]
"""The console script `holdfast`, without needing it on the PATH."""

Run = Callable[..., Result]
Process = Callable[..., subprocess.CompletedProcess[str]]


def environment(**extra: str) -> dict[str, str]:
    """This process's, without colour switches; one thread and no compiling, so that it starts at once."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "OMP_NUM_THREADS": "1", "HOLDFAST_KERNELS": "reference", **extra}


@pytest.fixture(scope="session")
def command() -> list[str]:
    return COMMAND


@pytest.fixture(scope="session", name="environment")
def _environment() -> Callable[..., dict[str, str]]:
    return environment


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`run("diagnose", "x")`: the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def start(folder: Path, *words: object, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        cwd=folder,
        env=environment(**extra),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=240,
    )


@pytest.fixture
def process(tmp_path: Path) -> Process:
    """`process("diagnose", "x")`: the command in a process of its own, in an empty folder."""
    return partial(start, tmp_path)


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `holdfast demo` ran for 110 steps; its output is in `stdout`, `stderr` and `code`."""
    folder = tmp_path_factory.mktemp("demo")
    done = start(folder, "demo", "--steps", 110, "--proof-seeds", 2)
    for name, text in (("stdout", done.stdout), ("stderr", done.stderr), ("code", str(done.returncode))):
        (folder / name).write_text(text, encoding="utf-8")
    return folder
