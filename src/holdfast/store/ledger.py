"""`Ledger`: everything that is written into a run's database."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.core.event import Event
from holdfast.core.reading import Reading, Table
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.statistic import Statistic
from holdfast.core.structure import Structure
from holdfast.store import codec
from holdfast.store.folder import RunFile
from holdfast.store.rollup import LEVELS, bucket_end
from holdfast.store.rows import READING, flat, reading_rows, statistic_row
from holdfast.store.schema import Kind, create
from holdfast.store.sealing import Chunk, Ladder, Layout, TailRow, raw_groups

WINDOW = 60
"""An alarm pins the raw steps of this many steps before it; its record's own `pinned` those that follow."""

TAIL_BYTES = 2**22
"""The tail is sealed early when it holds more than this, which only wide statistics of channels reach."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a writer holds back, and how much of a run it keeps.

    Args:
        queue: records that wait for the disk; beyond it they are coarsened.
        linger: seconds that a commit waits for more records, so that one flush of the disk serves many.
        seal: records in the tail that are sealed into chunks.
        ring: steps kept raw.
        retry: seconds between attempts while the disk refuses.
        patience: seconds that `close` waits for the disk.
    """

    queue: int = 128
    linger: float = 0.1
    seal: int = 64
    ring: int = 2000
    retry: float = 1.0
    patience: float = 60.0

    def kept(self, kind: Kind, level: int) -> int | None:
        """How many of the last steps keep their rows of a level.

        Args:
            kind: of the series.
            level: steps in a bucket.

        Returns:
            Steps; `None` for all of them.
        """
        if kind == "channels":
            return {1: 0, 10: 10 * self.ring}.get(level)
        return self.ring if level == 1 and kind != "value" else None


@dataclass(frozen=True, slots=True)
class Entry:
    """One record, ready to be committed."""

    row: TailRow
    pinned: tuple[int, ...]
    events: tuple[Event, ...]
    tables: tuple[Table, ...]


@dataclass(slots=True)
class _Stream:
    id: int
    last: int = 0
    ladder: Ladder = field(default_factory=Ladder)
    trimmed: dict[tuple[Kind, int], int] = field(default_factory=dict)


class Ledger:
    """Writes records into one database; used by one thread at a time.

    Args:
        file: reserved, empty.
        limits: what to keep.

    Raises:
        sqlite3.Error: the tables cannot be made.
    """

    def __init__(self, file: RunFile, limits: Limits) -> None:
        self.file = file
        self.limits = limits
        self.connection = sqlite3.connect(file.path, isolation_level=None, check_same_thread=False, timeout=10.0)
        try:
            create(self.connection)
            self.connection.execute("PRAGMA journal_size_limit=16777216")
            self._identity = _identity(file)
        except BaseException:
            self.connection.close()
            raise
        self.durable: dict[int, int] = {}  # the last committed step of each stream
        self.tail: list[TailRow] = []  # committed, not sealed
        self._streams: dict[str, _Stream] = {}
        self._series: dict[tuple[Kind, str, str, Site | None, str, int | None], int] = {}
        self._kinds: dict[int, Kind] = {}
        self._unsaved: list[tuple[int, int, Kind, str, str, str, int | None]] = []  # series not yet in the file
        self._by_identity: dict[_Quick, tuple[Site, str, int]] = {}
        self._layouts: dict[tuple[tuple[int, ...], tuple[int, ...]], Layout] = {}
        self._next_row = 1

    # what a record says, as figures

    def entry(self, record: StepRecord) -> Entry:
        """Work a record out.

        Args:
            record: any.

        Returns:
            What `commit` takes.
        """
        stream = self._stream(record.stream)
        series = [self._key("value", record.stream, name) for name in record.values]
        widths = [1] * len(series)
        parts = [flat([float(value) for value in record.values.values()])]
        self._statistics("summary", record.stream, record.summaries, series, widths, parts)
        if record.readings:
            series += self._readings(record.stream, record.readings)
            widths += [len(READING)] * len(record.readings)
            parts.append(reading_rows(record.readings).ravel())
        self._statistics("channels", record.stream, record.channels, series, widths, parts)
        vector = np.concatenate(parts)
        tail = TailRow(self._next_row, stream.id, record.step, self._layout(series, widths), vector)
        self._next_row += 1
        return Entry(tail, _pinned(record, after=_raw_from(stream)), tuple(record.events), tuple(record.tables))

    def _statistics(
        self,
        kind: Kind,
        stream: str,
        statistics: Mapping[Site, Statistic],
        series: list[int],
        widths: list[int],
        parts: list[NDArray[np.float64]],
    ) -> None:
        for site, statistic in statistics.items():
            row = statistic_row(statistic)
            series.append(self._place(kind, stream, site))
            widths.append(len(row))
            parts.append(row)

    def _stream(self, name: str) -> _Stream:
        return self._streams.setdefault(name, _Stream(len(self._streams) + 1))

    # Sites are the same objects at each step, and slow to hash: a hundred sites with four readings each are looked up
    # by identity first. What is found holds the site, so that its address cannot become another's.

    def _place(self, kind: Kind, stream: str, site: Site) -> int:
        quick = (kind, stream, id(site), None)
        found = self._by_identity.get(quick)
        return found[2] if found else self._remember(quick, site, "", self._key(kind, stream, "", site))

    def _readings(self, stream: str, readings: Sequence[Reading]) -> list[int]:
        known = self._by_identity.get
        keys = []
        for reading in readings:
            quick = (reading.measure, stream, id(reading.site), reading.lag)
            found = known(quick)
            if found is None or (found[1] is not reading.unit and found[1] != reading.unit):
                decade, unit = reading.lag_decade, str(reading.unit)
                key = self._key("reading", stream, reading.measure, reading.site, unit, decade)
                keys.append(self._remember(quick, reading.site, reading.unit, key))
            else:
                keys.append(found[2])
        return keys

    def _remember(self, quick: _Quick, site: Site, unit: str, key: int) -> int:
        if len(self._by_identity) >= 50_000:  # a monitor that makes its sites anew at each step
            self._by_identity.clear()
        self._by_identity[quick] = (site, unit, key)
        return key

    def _key(
        self, kind: Kind, stream: str, name: str, site: Site | None = None, unit: str = "", decade: int | None = None
    ) -> int:
        key = (kind, stream, name, site, unit, decade)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = len(self._series) + 1
            self._kinds[found] = kind
            place = "" if site is None else str(site)
            self._unsaved.append((found, self._stream(stream).id, kind, name, place, unit, decade))
        return found

    def _layout(self, series: list[int], widths: list[int]) -> Layout:
        key = (tuple(series), tuple(widths))
        found = self._layouts.get(key)
        if found is None:
            if len(self._layouts) >= 1000:  # a run whose records never look alike must not fill the memory
                self._layouts.clear()
            found = self._layouts[key] = Layout(
                np.array(series, np.uint32), np.array(widths, np.uint32), np.cumsum(widths, dtype=np.int64)
            )
        return found

    # transactions

    def commit(self, entries: list[Entry], structures: list[Structure]) -> None:
        """Write records so that a crash cannot lose them; all or none.

        Args:
            entries: what `entry` made of them.
            structures: of the models, as far as they are new.

        Raises:
            sqlite3.Error: the disk refuses; nothing was written, the same call can be made again.
            OSError: the file is gone.
        """
        last = {name: stream.last for name, stream in self._streams.items()}
        names = {stream.id: name for name, stream in self._streams.items()}
        for entry in entries:
            name = names[entry.row.stream]
            last[name] = max(last[name], entry.row.step)
        described = [(self._stream(each.stream).id, each.stream, each.to_json()) for each in structures]
        with self._transaction() as execute:
            execute(
                "INSERT INTO stream (id, name, last_step) VALUES (?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET last_step = excluded.last_step",
                [(self._streams[name].id, name, step) for name, step in last.items()],
            )
            execute(
                "INSERT INTO stream (id, name, last_step, structure) VALUES (?, ?, 0, ?)"
                " ON CONFLICT (id) DO UPDATE SET structure = excluded.structure",
                described,
            )
            execute("INSERT INTO series VALUES (?, ?, ?, ?, ?, ?, ?)", self._unsaved)
            execute("INSERT INTO tail VALUES (?, ?, ?, ?)", map(_tail_values, entries))
            execute(
                "INSERT OR IGNORE INTO pin VALUES (?, ?)",
                [(entry.row.stream, bucket) for entry in entries for bucket in entry.pinned],
            )
            execute(
                "INSERT INTO event (stream, step, kind, message, site, data) VALUES (?, ?, ?, ?, ?, ?)",
                [_event_values(entry.row.stream, event) for entry in entries for event in entry.events],
            )
            execute(
                "INSERT INTO profile (stream, step, measure, data) VALUES (?, ?, ?, ?)",
                [_table_values(entry.row.stream, table) for entry in entries for table in entry.tables],
            )
        self._unsaved.clear()
        self.tail += [entry.row for entry in entries]
        for name, step in last.items():
            self._streams[name].last = step
        self.durable = {stream.id: stream.last for stream in self._streams.values() if stream.last}

    @property
    def due(self) -> bool:
        """Whether the tail is long enough to be sealed."""
        return len(self.tail) >= self.limits.seal or sum(row.vector.nbytes for row in self.tail) > TAIL_BYTES

    def seal(self, *, final: bool = False) -> None:
        """Turn the tail into chunks, roll them up, drop what has left the ring.

        Only whole buckets of 10 steps are sealed, so that a merged row never has to be mended.

        Args:
            final: nothing comes after: seal all of it.

        Raises:
            sqlite3.Error: the disk refuses; nothing was changed.
            OSError: the file is gone.
        """
        # Records whose steps do not rise would never complete a bucket; a mere backlog does.
        whole = {stream.id: stream.last // 10 * 10 for stream in self._streams.values()}
        waiting = sum(row.step > whole[row.stream] for row in self.tail)
        everything = final or waiting > 4 * self.limits.seal
        sealed: list[TailRow] = []
        ladders: dict[str, Ladder] = {}
        trimmed: dict[str, dict[tuple[Kind, int], int]] = {}
        with self._transaction() as execute:
            for name, stream in self._streams.items():
                boundary = stream.last if everything else whole[stream.id]
                rows = [row for row in self.tail if row.stream == stream.id and row.step <= boundary]
                groups = raw_groups(rows, self._kinds)
                ladders[name], chunks = stream.ladder.climb(groups, boundary, rows=self.limits.seal, final=everything)
                raw = [Chunk(1, group) for group in groups if group.kind != "channels"]
                execute(
                    "INSERT INTO chunk (series, level, first, last, data) VALUES (?, ?, ?, ?, ?)",
                    (values for chunk in (*raw, *chunks) for values in _chunk_values(chunk)),
                )
                execute("DELETE FROM tail WHERE id = ?", [(row.id,) for row in rows])
                trimmed[name] = self._trim(execute, stream, ladders[name], boundary)
                sealed += rows
        gone = {row.id for row in sealed}
        self.tail = [row for row in self.tail if row.id not in gone]
        for name, stream in self._streams.items():
            stream.ladder, stream.trimmed = ladders[name], trimmed[name]

    def _trim(self, execute: _Execute, stream: _Stream, ladder: Ladder, boundary: int) -> dict[tuple[Kind, int], int]:
        """Drop rows that have left their ring and whose merged rows are in the file."""
        trimmed = dict(stream.trimmed)
        for (kind, coarse), written in ladder.written.items():
            level = LEVELS[LEVELS.index(coarse) - 1]
            kept = self.limits.kept(kind, level)
            if kept is None:
                continue
            through = min(written, boundary - kept) // coarse * coarse
            if not kept:
                through = bucket_end(boundary, coarse)  # never had chunks: the tail's rows are merged and gone
            if through <= trimmed.get((kind, level), 0):
                continue
            trimmed[kind, level] = through
            execute(
                "DELETE FROM chunk WHERE series IN (SELECT id FROM series WHERE stream = ? AND kind = ?)"
                " AND level = ? AND last <= ? AND NOT (level = 1 AND EXISTS"
                " (SELECT 1 FROM pin WHERE stream = ? AND bucket >= chunk.first AND bucket < chunk.last + 10))",
                [(stream.id, kind, level, through, stream.id)],
            )
            execute("INSERT OR REPLACE INTO trimmed VALUES (?, ?, ?, ?)", [(stream.id, kind, level, through)])
        return trimmed

    @contextmanager
    def _transaction(self) -> Iterator[_Execute]:
        # An open database whose file was removed takes writes without a word, and loses them.
        if _identity(self.file) != self._identity:
            raise FileNotFoundError(f"'{self.file.path}' was replaced by another file")
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection.executemany
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Leave one plain file, without a log beside it where nobody else has it open."""
        try:
            self.connection.execute("PRAGMA busy_timeout=200")
            self.connection.executescript("PRAGMA incremental_vacuum")  # the room of the sealed tail
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            # Readable from then on where nothing can be written: a log needs a shared-memory file beside it.
            self.connection.execute("PRAGMA journal_mode=DELETE")
        except sqlite3.Error:
            pass  # someone reads it, or the disk refuses: the log stays, and is read with the file
        finally:
            self.connection.close()


_Quick = tuple[str, str, int, int | None]
_Execute = Callable[[str, Iterable[Any]], object]


def _identity(file: RunFile) -> tuple[int, int]:
    status = os.stat(file.path)
    return status.st_dev, status.st_ino


def _raw_from(stream: _Stream) -> int:
    return max(
        (through for (kind, level), through in stream.trimmed.items() if level == 1 and kind != "channels"), default=0
    )


def _pinned(record: StepRecord, *, after: int) -> tuple[int, ...]:
    """Ends of the buckets of 10 steps whose raw rows stay, of those that are still there."""
    first = record.step
    if any(event.kind == "alarm" for event in record.events):
        first = max(after + 1, record.step - WINDOW)
    elif not record.pinned:
        return ()
    return tuple(range(bucket_end(first, 10), bucket_end(record.step, 10) + 1, 10))


def _tail_values(entry: Entry) -> tuple[int, int, int, bytes]:
    row = entry.row
    data = codec.encode_tail(row.layout.series, row.layout.widths, row.vector)
    return row.id, row.stream, row.step, data


def _chunk_values(chunk: Chunk) -> Iterator[tuple[int, int, int, int, bytes]]:
    _, series, steps, stack = chunk.group
    first, last = int(steps[0]), int(steps[-1])
    for key, data in zip(series, codec.encode(steps, stack), strict=True):
        yield key, chunk.level, first, last, data


def _event_values(stream: int, event: Event) -> tuple[int, int, str, str, str | None, str]:
    site = None if event.site is None else str(event.site)
    return stream, event.step, event.kind, event.message, site, json.dumps(dict(event.data), default=str)


def _table_values(stream: int, table: Table) -> tuple[int, int, str, str]:
    data = {
        "unit": str(table.unit),
        "rows": table.rows,
        "columns": table.columns,
        "values": table.values,
        "n": table.n,
    }
    return stream, table.step, table.measure, json.dumps(data)
