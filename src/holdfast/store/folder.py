"""The files of a run's folder: one database per rank and attempt."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from holdfast.core.errors import RunError
from holdfast.store.schema import HOW_TO_RECORD

_NAME = re.compile(r"attempt-(\d{3,})\.rank-(\d{3,})\.sqlite")


@dataclass(frozen=True, slots=True, order=True)
class RunFile:
    """One database in a run's folder.

    Args:
        attempt: counts the runs recorded in the same folder, from 1.
        rank: of the process that wrote it.
        path: where it is.

    Example:
        >>> RunFile.at(Path("runs/a"), attempt=2, rank=0).path.name
        'attempt-002.rank-000.sqlite'
    """

    attempt: int
    rank: int
    path: Path

    @classmethod
    def at(cls, folder: Path, *, attempt: int, rank: int) -> RunFile:
        """The file of an attempt and a rank.

        Args:
            folder: the run's.
            attempt: from 1.
            rank: from 0.

        Returns:
            The file, which need not exist.
        """
        return cls(attempt, rank, folder / f"attempt-{attempt:03d}.rank-{rank:03d}.sqlite")


def run_files(folder: Path) -> list[RunFile]:
    """The databases in a folder, by attempt and rank.

    Args:
        folder: the run's.

    Returns:
        One entry a file; empty when there is none.
    """
    matches = [(each, _NAME.fullmatch(each.name)) for each in folder.iterdir()]
    return sorted(RunFile(int(match[1]), int(match[2]), path) for path, match in matches if match)


def reserve(folder: Path, rank: int, agreed: Callable[[int], int] | None = None) -> RunFile:
    """Create the empty file of a rank's next attempt; two processes never get the same.

    Args:
        folder: the run's; made when it does not exist.
        rank: of this process.
        agreed: from the first attempt that no rank has used to the one that the ranks of a run take together; `None`
            where they cannot speak: then each rank counts its own.

    Returns:
        The file.

    Raises:
        RunError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        attempt = 1 if agreed is None else agreed(1 + max((each.attempt for each in run_files(folder)), default=0))
        while True:
            taken = [each.attempt for each in run_files(folder) if each.rank == rank]
            if agreed is None or attempt in taken:
                attempt = 1 + max(taken, default=0)
            file = RunFile.at(folder, attempt=attempt, rank=rank)
            try:
                os.close(os.open(file.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            except FileExistsError:  # another process was faster
                continue
            return file
    except OSError as error:
        raise unwritable(folder, error.strerror or error) from error


def unwritable(folder: Path, cause: object) -> RunError:
    """The error for a folder in which no run can be recorded.

    Args:
        folder: the run's.
        cause: what the system said.

    Returns:
        The error, to be raised.
    """
    return RunError(
        "a folder that can be written, for the run",
        f"'{folder}' ({cause})",
        "name another: hf.watch(model, optimizer, run=FOLDER)",
    )


def find(place: Path, *, attempt: int | None, rank: int) -> RunFile:
    """The database to read.

    Args:
        place: a run's folder, or one of its files.
        attempt: which; the newest that is not empty when `None`.
        rank: of the process that wrote it.

    Returns:
        The file.

    Raises:
        RunError: there is none.
    """
    try:
        if not place.exists():
            raise RunError("a run's folder", f"'{place}', which does not exist", HOW_TO_RECORD)
        if not place.is_dir():
            match = _NAME.fullmatch(place.name)
            return _not_empty(RunFile(int(match[1]) if match else 1, int(match[2]) if match else 0, place))
        files = [file for file in run_files(place) if file.rank == rank]
    except OSError as error:
        raise RunError(
            "a run's folder that can be read", f"'{place}' ({error.strerror})", f"type: chmod u+rx '{place}'"
        ) from error
    if not files:
        raise RunError("a run's folder", f"'{place}', in which no run was recorded", HOW_TO_RECORD)
    if attempt is None:
        return _not_empty(next((file for file in reversed(files) if file.path.stat().st_size), files[-1]))
    chosen = [file for file in files if file.attempt == attempt]
    if not chosen:
        there = ", ".join(str(file.attempt) for file in files)
        raise RunError(f"one of the attempts {there}", f"attempt {attempt} of '{place}'", "leave attempt out")
    return _not_empty(chosen[0])


def _not_empty(file: RunFile) -> RunFile:
    if not file.path.stat().st_size:
        raise RunError("a run with recorded steps", f"'{file.path}', which is empty", HOW_TO_RECORD)
    return file
