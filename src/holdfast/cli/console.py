"""Where a command prints: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

WIDTH = 110
"""Columns where there is neither a terminal to ask nor COLUMNS: a table of layers fits."""


def output() -> Console:
    """The console for results. Colour only on a terminal, and not under NO_COLOR."""
    return _console(stderr=False)


def notes() -> Console:
    """The console for progress and remarks."""
    return _console(stderr=True)


def note(text: str) -> None:
    """One line to stderr, as it is.

    Args:
        text: the line.
    """
    print(text, file=sys.stderr)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object to stdout, strict (no NaN) and in plain ASCII, so that any reader in any locale takes it.

    Args:
        value: plain values.
    """
    print(json.dumps(value, indent=2, allow_nan=False))


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, highlight=False, width=WIDTH)
