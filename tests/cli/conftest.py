"""Runs the command as a user does, in this process and in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from holdfast.cli.app import app

COMMAND = [sys.executable, "-c", "from holdfast.cli import main; main()"]
"""The console script `holdfast`, without needing it on the PATH."""

Run = Callable[..., Result]
Process = Callable[..., subprocess.CompletedProcess[str]]


def environment(**extra: str) -> dict[str, str]:
    """This process's, without colour switches and with few threads."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**kept, "OMP_NUM_THREADS": "1", **extra}


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


@pytest.fixture
def process(tmp_path: Path) -> Process:
    """`process("diagnose", "x")`: the command in a process of its own, in an empty folder."""

    def start(*words: object, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            cwd=tmp_path,
            env=environment(**extra),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            timeout=120,
        )

    return start
