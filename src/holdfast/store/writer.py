"""`RunWriter`: the sink that records a run on disk."""

from __future__ import annotations

import functools
import os
import sqlite3
import weakref
from collections import Counter
from pathlib import Path

from holdfast.core.record import StepRecord
from holdfast.core.structure import Structure
from holdfast.live.ranks import distributed, first_come, this_rank
from holdfast.store.folder import reserve, unwritable
from holdfast.store.ledger import Ledger, Limits
from holdfast.store.worker import Worker


class RunWriter:
    """Records a run in a folder: one database per rank and attempt, written by a thread of its own.

    `write` hands a record over and returns; it never waits for the disk and never raises. When records come faster
    than the disk takes them, or the disk is full, they are coarsened (`StepRecord.coarsened`), then dropped, both
    counted and told in an event. What was handed over before the process ends by itself is written, with or without
    `close`; what is at or before `durable_step` outlives `kill -9`. In a process forked from this one it does
    nothing.

    Args:
        folder: of the run; made when it does not exist. A second run in it is a new attempt.
        rank: of this process among those that train together; as `torch.distributed` or the environment tells when
            `None`. Each rank of a run writes a file of its own, all of them the same attempt.
        limits: how much to hold back and how much to keep.

    Raises:
        RunError: the folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = RunWriter(folder)
        ...     writer.write(StepRecord(1, values={"loss": 2.5}))
        ...     writer.close()
        ...     writer.durable_step
        1
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, rank: int | None = None, limits: Limits | None = None
    ) -> None:
        self.folder = Path(folder)
        agreed = functools.partial(_agreed, self.folder) if distributed() else None
        file = reserve(self.folder, this_rank() if rank is None else rank, agreed)
        try:
            ledger = Ledger(file, limits or Limits())
        except (sqlite3.Error, OSError) as error:
            raise unwritable(self.folder, error) from error
        self._worker = Worker(ledger)
        # Runs when the writer is forgotten, or else when Python exits; the worker does not know the writer.
        self._finalizer = weakref.finalize(self, self._worker.stop)

    @property
    def path(self) -> Path:
        """The database."""
        return self._worker.ledger.file.path

    @property
    def attempt(self) -> int:
        """Which run of this folder it is, from 1."""
        return self._worker.ledger.file.attempt

    @property
    def coarsened(self) -> int:
        """How many records were kept without summaries, readings and tables."""
        return self._worker.coarsened

    @property
    def dropped(self) -> int:
        """How many records were not kept at all (their events are)."""
        return self._worker.dropped

    def describe(self, structure: Structure) -> None:
        """Keep a model's structure; a later one of the same stream replaces it.

        Args:
            structure: of the model.
        """
        if self._open:
            self._worker.take(structure)

    def write(self, record: StepRecord) -> None:
        """Take one step's record; its mappings must not be changed afterwards.

        Args:
            record: steps of one stream in rising order.
        """
        if self._open:
            self._worker.take(record)

    @property
    def durable_step(self) -> int:
        """The last step that a crash cannot lose; 0 before the first. Of several streams, the one furthest behind."""
        return min(self._worker.ledger.durable.values(), default=0)

    @property
    def seconds(self) -> float:
        """Processor time that writing has taken so far, beside the training thread."""
        return self._worker.seconds

    def close(self) -> None:
        """Write what is still on its way; a second call does nothing."""
        self._worker.stop()  # may be interrupted by Ctrl-C; the finalizer is then still there
        self._finalizer.detach()

    @property
    def _open(self) -> bool:
        return self._finalizer.alive and os.getpid() == self._worker.pid


# How many writers this process has opened in each folder.
_OPENED: Counter[str] = Counter()


def _agreed(folder: Path, attempt: int) -> int:
    """The attempt of this run, which the first of its ranks to open the folder chooses for all."""
    place = str(folder.absolute())
    _OPENED[place] += 1
    return int(first_come(f"attempt/{place}/{_OPENED[place]}", str(attempt)))
