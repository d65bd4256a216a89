"""`Options`: how a host's training is watched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Options:
    """How a process is watched; goes to its children by pickle.

    Args:
        folder: of the run, absolute: the script may change its directory.
        every: observe every so many steps, or as often as the budget allows.
        budget: the monitor's largest share of the bare run's time.
        probe: samples cut from the first training batch for the fixed probe; 0 for none.
    """

    folder: Path
    every: int | Literal["auto"] = "auto"
    budget: float = 0.01
    probe: int = 64
