"""`SharedWriter`: one run's writer for the watches of several models, opened at the first step of any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from holdfast.core.record import StepRecord
from holdfast.core.structure import Structure
from holdfast.store.writer import RunWriter


class SharedWriter:
    """Hands one `RunWriter` to several sinks; a process that never trains leaves no folder.

    A folder that cannot be written raises once, into the sink that met it first; from then on all sinks are silent.

    Args:
        open_writer: makes the writer, at the first record of a step.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shared = SharedWriter(lambda: RunWriter(folder))
        ...     generator, critic = shared.sink(), shared.sink()
        ...     generator.write(StepRecord(1, "generator"))
        ...     critic.write(StepRecord(1, "critic"))
        ...     shared.close()
        ...     shared.writer.durable_step
        1
    """

    def __init__(self, open_writer: Callable[[], RunWriter]) -> None:
        self._open_writer = open_writer
        self._refused = False
        self._closed = False
        self.writer: RunWriter | None = None
        """The run's writer, `None` before the first record."""
        self.taken = 0
        """Records handed over so far, by all sinks."""

    @property
    def folder(self) -> Path | None:
        """The run's folder, `None` while there is none."""
        return None if self.writer is None else self.writer.folder

    def sink(self) -> StreamSink:
        """A sink for one more watch."""
        return StreamSink(self)

    def opened(self) -> RunWriter | None:
        """The writer, opened now if it was not yet; `None` when it is closed or could not be opened.

        Raises:
            RunError: it cannot be opened; told once.
        """
        if self._closed or self._refused:
            return None
        if self.writer is None:
            self._refused = True
            self.writer = self._open_writer()
            self._refused = False
        return self.writer

    def close(self) -> None:
        """Write what is still on its way; a second call does nothing."""
        self._closed = True
        if self.writer is not None:
            self.writer.close()


class StreamSink:
    """One watch's end of a shared writer: closing it leaves the writer open for the others.

    Records of step 0 are dropped: a watch that saw no step leaves nothing behind.

    Args:
        shared: the writer.
    """

    def __init__(self, shared: SharedWriter) -> None:
        self._shared = shared
        self._structure: Structure | None = None  # until the first step
        self._taken = 0
        self._closed = False

    def describe(self, structure: Structure) -> None:
        """Keep a model's structure; a later one of the same stream replaces it.

        Args:
            structure: of the model.
        """
        if self._taken and not self._closed and (writer := self._shared.opened()) is not None:
            writer.describe(structure)
        else:
            self._structure = structure

    def write(self, record: StepRecord) -> None:
        """Take one step's record.

        Args:
            record: steps of one stream in rising order.

        Raises:
            RunError: it is the first, and the run's folder cannot be written; told once for all sinks.
        """
        if self._closed or not record.step or (writer := self._shared.opened()) is None:
            return
        if self._structure is not None:
            structure, self._structure = self._structure, None
            writer.describe(structure)
        self._taken += 1
        self._shared.taken += 1
        writer.write(record)

    @property
    def durable_step(self) -> int:
        """The last step that a crash cannot lose; of several streams, the one furthest behind."""
        return 0 if self._shared.writer is None else self._shared.writer.durable_step

    @property
    def seconds(self) -> float:
        """Processor time that writing has taken so far: this sink's part, by its part of the records."""
        if self._shared.writer is None or not self._taken:
            return 0.0
        return self._shared.writer.seconds * self._taken / self._shared.taken

    def close(self) -> None:
        """Take no more; a second call does nothing."""
        self._closed = True
