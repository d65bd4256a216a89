"""`RunReader`: a run on disk, as a history; also while it is being written."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.core.errors import RunError
from holdfast.core.event import Event, EventKind
from holdfast.core.reading import Reading, Table
from holdfast.core.site import Phase, Port, Site
from holdfast.core.statistic import Statistic
from holdfast.core.structure import Structure
from holdfast.store import rows as figures
from holdfast.store.codec import Rows, Steps, decode, decode_tail
from holdfast.store.connect import open_database
from holdfast.store.folder import find, run_files
from holdfast.store.rollup import LEVELS, bucket_end, merge
from holdfast.store.rows import ROLLED
from holdfast.store.schema import Kind, damaged
from holdfast.store.sealing import in_order

Every = Literal[1, 10, 100, 1000]
"""Steps a row: 1 for the finest rows that are still kept."""

_NONE = np.array([], np.int64)


class Envelope(NamedTuple):
    """A measure at one site over time: mean and extremes of the readings in each bucket of steps.

    Args:
        steps: the last observed step of each bucket.
        mean: of the finite readings.
        least: of all of them.
        greatest: of all of them.
        n: how many were finite.
    """

    steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    least: NDArray[np.float64]
    greatest: NDArray[np.float64]
    n: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Series:
    id: int
    stream: str
    kind: Kind
    name: str
    site: Site | None
    unit: str
    decade: int | None


class RunReader:
    """A run in a folder, read-only: of a process that still writes it, of one that crashed, or of long ago.

    Each answer is of one moment of the run; the next may know more steps. Of steps that have left the ring of raw
    rows, what the database merged over 10 steps is given (further back for channels: 100), at the last step observed
    in each bucket: statistics merged by `+`, readings as means.

    Args:
        folder: of the run, or one of its files.
        attempt: which of the runs recorded in that folder; the newest when `None`.
        rank: of the process that wrote it.

    Raises:
        RunError: there is none, or it cannot be read; reading on may raise it too, where the file is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], *, attempt: int | None = None, rank: int = 0) -> None:
        self._name = os.fspath(folder)
        file = find(Path(folder), attempt=attempt, rank=rank)
        self.path, self.attempt, self.rank = file.path, file.attempt, file.rank
        self._source = open_database(file.path)
        self._lock = threading.RLock()
        self._series: dict[int, _Series] = {}
        self._streams: dict[str, tuple[int, int]] = {}  # name → number, last step
        self._sites: dict[str, Site] = {}
        self._trimmed: dict[tuple[str, str, int], int] = {}
        self._tail: dict[int, list[tuple[int, NDArray[np.float64]]]] = {}
        self._pinned: dict[str, NDArray[np.int64]] = {}
        # the same as the file itself says; `align` may let other ranks' files decide
        self._own: tuple[dict[tuple[str, str, int], int], dict[str, NDArray[np.int64]]] = ({}, {})
        self._version = -1
        self._inside = False
        self._closed = False

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        with self._lock:
            self._closed = True
            self._source.close()

    # what there is

    @property
    def name(self) -> str:
        """The run's folder, as it was given."""
        return self._name

    @property
    def attempts(self) -> Sequence[int]:
        """The runs recorded in the same folder."""
        return sorted({file.attempt for file in run_files(self.path.parent)} | {self.attempt})

    @property
    def steps(self) -> int:
        """The last step that the file knows; of several streams, the greatest."""
        with self._snapshot():
            return max((last for _, last in self._streams.values()), default=0)

    @property
    def durable_step(self) -> int:
        """The last step that a crash cannot lose; of several streams, the one furthest behind."""
        with self._snapshot():
            return min((last for _, last in self._streams.values() if last), default=0)

    def streams(self) -> Sequence[str]:
        """Names of the models watched, in order of appearance."""
        with self._snapshot():
            return list(self._streams)

    def structure(self, stream: str = "net") -> Structure | None:
        """The model's structure, `None` when it was not recorded."""
        with self._snapshot() as connection:
            found = connection.execute("SELECT structure FROM stream WHERE name = ?", (stream,)).fetchone()
            return Structure.from_json(found[0]) if found and found[0] else None

    def sites(
        self, *, port: Port | None = None, phase: Phase | None = None, stream: str | None = None
    ) -> Sequence[Site]:
        """The sites seen, in the order of their first observation."""
        with self._snapshot():
            seen = dict.fromkeys(each.site for each in self._series.values() if each.site is not None)
        return [
            site
            for site in seen
            if port in (None, site.port) and phase in (None, site.phase) and stream in (None, site.stream)
        ]

    def value_names(self, stream: str = "net") -> Sequence[str]:
        """Names of the cheap series, in order of appearance."""
        with self._snapshot():
            return [each.name for each in self._of("value") if each.stream == stream]

    def measures(self) -> Sequence[str]:
        """Names of the measures that have readings, in order of appearance."""
        with self._snapshot():
            return list(dict.fromkeys(each.name for each in self._of("reading")))

    # series

    def values(self, name: str, stream: str = "net") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and values of a cheap series, all of them; two empty arrays when there is none."""
        with self._snapshot():
            found = next((each for each in self._of("value") if (each.name, each.stream) == (name, stream)), None)
            parts = [] if found is None else self._parts(found, 1)
        if not parts:
            return np.array([], np.int64), np.array([], np.float64)
        steps, rows = in_order(parts)
        return steps, rows[:, 0]

    def readings(
        self, measure: str, site: Site | None = None, *, lag: int | None = None, every: Every = 1
    ) -> Sequence[Reading]:
        """Readings of a measure, of one site or all, of one lag decade or all.

        Args:
            measure: its name.
            site: all sites when `None`.
            lag: 1, 10, 100, …; all when `None`.
            every: steps a reading; 1 for the finest that is kept.

        Returns:
            By step; those of one step in the order in which the run first had them.
        """
        found: list[Reading] = []
        with self._snapshot():
            for each in self._of("reading"):
                if each.name == measure and site in (None, each.site) and lag in (None, each.decade):
                    for steps, rows in self._parts(each, every):
                        assert each.site is not None
                        found += figures.readings(measure, each.site, each.unit, steps, rows)
        return sorted(found, key=lambda reading: reading.step)

    def envelope(self, measure: str, site: Site, *, lag: int | None = None, every: Every = 100) -> Envelope:
        """How a measure moved, for a plot of a long run.

        Args:
            measure: its name.
            site: where.
            lag: 1, 10, 100, …; the first that the run had when `None`.
            every: steps in a bucket.

        Returns:
            One entry a bucket; empty when there is no reading.
        """
        with self._snapshot():
            mine = (each for each in self._of("reading") if (each.name, each.site) == (measure, site))
            found = next((each for each in mine if lag in (None, each.decade)), None)
            parts = [] if found is None else self._parts(found, every)
        parts = [(steps, figures.as_rolled(rows)) for steps, rows in parts]
        steps, rows = in_order([*parts, (np.array([], np.int64), np.empty((0, len(ROLLED))))])
        mean, least, greatest, count = (rows[:, ROLLED.index(name)] for name in ("value", "least", "greatest", "count"))
        return Envelope(steps, mean, least, greatest, count)

    def summaries(self, site: Site, *, every: Every = 1) -> Sequence[tuple[int, Statistic]]:
        """`(step, stats.Summary)` of a site; `every` as for readings."""
        return self._statistics("summary", site, every)

    def channels(self, site: Site, *, every: Every = 1) -> Sequence[tuple[int, Statistic]]:
        """`(step, stats.ChannelMoments)` of a site; `every` as for readings."""
        return self._statistics("channels", site, every)

    def _statistics(self, kind: Kind, site: Site, every: Every) -> list[tuple[int, Statistic]]:
        with self._snapshot():
            parts = [part for each in self._of(kind) if each.site == site for part in self._parts(each, every)]
        unpack = figures.summaries if kind == "summary" else figures.channels
        found: list[tuple[int, Statistic]] = []
        for steps, rows in parts:
            found += zip(steps.tolist(), unpack(rows), strict=True)
        return sorted(found, key=lambda pair: pair[0])

    # what happened

    def tables(self, measure: str) -> Sequence[Table]:
        """Tables of a measure."""
        with self._snapshot() as connection:
            found = connection.execute(
                "SELECT step, data FROM profile WHERE measure = ? ORDER BY step, id", (measure,)
            ).fetchall()
            return [_table(measure, step, json.loads(data)) for step, data in found]

    def events(self, kind: EventKind | None = None) -> Sequence[Event]:
        """What happened, of one kind or of all."""
        with self._snapshot() as connection:
            found = connection.execute(
                "SELECT step, kind, message, site, data FROM event WHERE ? IS NULL OR kind = ? ORDER BY step, id",
                (kind, kind),
            ).fetchall()
            return [
                Event(step, what, message, None if site is None else self._site(site), json.loads(data))
                for step, what, message, site, data in found
            ]

    # beside the files of other ranks

    @property
    def version(self) -> int:
        """Differs from an earlier one when the file has changed since."""
        return self._version

    def align(self, readers: Sequence[RunReader]) -> None:
        """Answer as coarsely as several readers must, so that their rows are of the same buckets of steps.

        Files of the ranks of a run drop their raw rows at slightly different times. In force until the file changes;
        called within `moment` of each.

        Args:
            readers: all of them, this one too.
        """
        keys = {key for each in readers for key in each._own[0]}
        self._trimmed = {key: max(each._own[0].get(key, 0) for each in readers) for key in keys}
        streams = {stream for each in readers for stream in each._own[1]}
        self._pinned = {
            stream: functools.reduce(
                np.intersect1d,
                # who has dropped nothing yet still has what the others pinned
                [each._own[1].get(stream, _NONE) for each in readers if each._drops(stream)] or [_NONE],
            )
            for stream in streams
        }

    def _drops(self, stream: str) -> bool:
        return any(key[0] == stream and key[1:] != ("channels", 1) for key in self._own[0])

    # rows of one series

    def _parts(self, series: _Series, every: int) -> list[tuple[Steps, Rows]]:
        """Rows at a level, or at the coarser ones where it was dropped; one part for each width, if there are several.

        Oldest first: rows of level 1,000 up to where level 100 begins, and so on down to `every`.
        """
        through = 0
        parts: list[tuple[Steps, Rows]] = []
        # Channels have no raw chunks to pin.
        pinned = self._pinned.get(series.stream, _NONE) if every == 1 and series.kind != "channels" else _NONE
        for level in reversed(LEVELS[LEVELS.index(every) :]):
            dropped = self._trimmed.get((series.stream, series.kind, level), 0)
            if level > every and self._trimmed.get((series.stream, series.kind, level // 10), 0) <= through:
                continue  # the next finer level reaches as far back
            until = self._trimmed[series.stream, series.kind, level // 10] if level > every else None
            for steps, rows in self._level(series, level, max(dropped, through), until, pinned):
                parts.append((steps, rows))
            through = until or through
        return _by_width(series.kind, parts)

    def _level(
        self, series: _Series, level: int, after: int, until: int | None, pinned: NDArray[np.int64]
    ) -> list[tuple[Steps, Rows]]:
        """Rows of a level after one step up to another; what is not yet merged in the file is merged here."""
        parts: list[tuple[Steps, Rows]] = []
        stored = self._source.connection.execute(
            "SELECT data FROM chunk WHERE series = ? AND level = ? AND last > ? ORDER BY first, id",
            (series.id, level, -1 if level == 1 and pinned.size else after),
        )
        covered = after
        for (data,) in stored:
            steps, rows = decode(data)
            ends = -(-steps // 10) * 10
            kept = np.isin(ends, pinned)
            kept = (steps > after) | kept if level == 1 else (steps > after) & ~(kept & (level == 10))
            if until is not None:
                kept &= steps <= until
            covered = max(covered, bucket_end(int(steps[-1]), level))
            if kept.any():
                parts.append((steps[kept], rows[kept]))
        if level == 1:
            # What the file itself has dropped is not in its tail; what another rank's has may be.
            aligned = after > self._own[0].get((series.stream, series.kind, 1), 0)
            for step, row in self._tail.get(series.id, []):
                if (until is None or step <= until) and (step > after or not aligned):
                    parts.append((np.array([step], np.int64), row[None]))
        elif until is None or covered < until:
            finer = self._level(series, level // 10, covered, until, _NONE)
            for steps, rows in _by_width(series.kind, finer):
                merged, stack = merge(series.kind, level, steps, rows[None])
                parts.append((merged, stack[0]))
        return parts

    def _of(self, kind: Kind) -> Iterator[_Series]:
        return (each for each in self._series.values() if each.kind == kind)

    # one moment of the file

    @contextmanager
    def moment(self) -> Iterator[RunReader]:
        """Let all answers inside be of the same moment of a run that is being written.

        Keep it short: what the run writes meanwhile stays in its log.

        Yields:
            This reader.

        Example:
            >>> import tempfile
            >>> from holdfast.core.record import StepRecord
            >>> from holdfast.store.writer import RunWriter
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     writer = RunWriter(folder)
            ...     writer.write(StepRecord(1, values={"loss": 2.5}))
            ...     writer.close()
            ...     with RunReader(folder) as run, run.moment():
            ...         run.steps == len(run.values("loss")[0])
            True
        """
        with self._lock:
            if self._inside:
                yield self
                return
            if self._closed:
                raise RunError(
                    "a run that is open", f"'{self._name}', which was closed", "open it again: hf.Run(FOLDER)"
                )
            connection = self._source.connection
            self._inside = True
            try:
                with self._telling():
                    connection.execute("BEGIN")
                    self._refresh(connection)
                yield self
            finally:
                self._inside = False
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """The same for one answer."""
        with self.moment(), self._telling():
            yield self._source.connection

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What SQLite and the codec say of a damaged file, in our words."""
        try:
            yield
        except (sqlite3.DatabaseError, ValueError, KeyError) as error:
            raise damaged(self.path, error) from error

    def _refresh(self, connection: sqlite3.Connection) -> None:
        """Read what is small and needed by every answer, if the file has changed since."""
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version == self._version:
            return
        streams = connection.execute("SELECT id, name, last_step FROM stream ORDER BY id").fetchall()
        self._streams = {name: (number, last) for number, name, last in streams}
        names = {number: name for number, name, _ in streams}
        for number, stream, kind, name, site, unit, decade in connection.execute(
            "SELECT id, stream, kind, name, site, unit, decade FROM series WHERE id > ? ORDER BY id",
            (max(self._series, default=0),),
        ):
            place = None if kind == "value" else self._site(site)
            self._series[number] = _Series(number, names[stream], kind, name, place, unit, decade)
        self._trimmed = {
            (names[stream], kind, level): through
            for stream, kind, level, through in connection.execute("SELECT stream, kind, level, through FROM trimmed")
        }
        pinned: dict[str, list[int]] = {}
        for stream, bucket in connection.execute("SELECT stream, bucket FROM pin"):
            pinned.setdefault(names[stream], []).append(bucket)
        self._pinned = {stream: np.array(buckets, np.int64) for stream, buckets in pinned.items()}
        self._own = (self._trimmed, self._pinned)
        self._tail = {}
        for step, data in connection.execute("SELECT step, data FROM tail ORDER BY step, id"):
            for number, row in zip(*decode_tail(data), strict=True):
                self._tail.setdefault(number, []).append((step, row))
        self._version = version

    def _site(self, text: str) -> Site:
        found = self._sites.get(text)
        if found is None:
            found = self._sites[text] = Site.parse(text)
        return found


def _by_width(kind: Kind, parts: list[tuple[Steps, Rows]]) -> list[tuple[Steps, Rows]]:
    """Join parts of equal width, in rising order of step."""
    if kind == "reading" and len({rows.shape[1] for _, rows in parts}) > 1:
        parts = [(steps, figures.as_rolled(rows)) for steps, rows in parts]
    widths: dict[int, list[tuple[Steps, Rows]]] = {}
    for steps, rows in parts:
        widths.setdefault(rows.shape[1], []).append((steps, rows))
    return [in_order(each) for each in widths.values()]


def _table(measure: str, step: int, data: dict[str, Any]) -> Table:
    unit, rows, columns, values, n = (data[name] for name in ("unit", "rows", "columns", "values", "n"))
    return Table(measure, step, unit, tuple(rows), tuple(columns), tuple(tuple(row) for row in values), n)
