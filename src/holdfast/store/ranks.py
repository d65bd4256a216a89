"""`MergedRun`: the files of all ranks of a run, as one history."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from holdfast.core.errors import RunError
from holdfast.core.event import Event, EventKind
from holdfast.core.reading import Reading, Table
from holdfast.core.site import Phase, Port, Site
from holdfast.core.statistic import Statistic
from holdfast.core.structure import Structure
from holdfast.live.ranks import world_size
from holdfast.store import merging
from holdfast.store.folder import RunFile, find, run_files
from holdfast.store.reader import Every, RunReader

BEHIND = 20
"""Steps that a rank's file may lack at its end before it is told: ranks that run side by side do not write at once."""


def open_run(
    folder: str | os.PathLike[str], *, attempt: int | None = None, rank: int | None = None
) -> RunReader | MergedRun:
    """Open a run for reading: the files of all its ranks as one, or the one file there is.

    Args:
        folder: of the run, or one of its files.
        attempt: which of the runs recorded in that folder; the newest when `None`.
        rank: only what this rank recorded; all ranks when `None`.

    Returns:
        The history.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    place = Path(folder)
    if rank is not None or place.is_file():
        return RunReader(folder, attempt=attempt, rank=rank or 0)
    files = run_files(place) if place.is_dir() else []
    if all(file.rank == 0 for file in files) and world_size() == 1:
        reader = RunReader(folder, attempt=attempt)
        if all((found := reader.structure(stream)) is None or found.ranks == 1 for stream in reader.streams()):
            return reader
        reader.close()
    return MergedRun(folder, attempt=attempt)


class MergedRun:
    """A run that several processes recorded, as one history; read-only, also while they still write it.

    How figures merge is said in `store.merging`. What a rank did not record is merged from those that did, but for
    norms of shards, which are given only where all ranks have theirs; what is missing is told as an event.

    Args:
        folder: of the run.
        attempt: which of the runs recorded in that folder; the newest when `None`.

    Raises:
        RunError: there is none, or it cannot be read; reading on may raise it too, where a file is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], *, attempt: int | None = None) -> None:
        self._name = os.fspath(folder)
        self._folder = Path(folder)
        self._lock = threading.RLock()
        self._inside = False
        self._readers: dict[int, RunReader] = {}
        self._versions: tuple[int, ...] = ()
        self._structures: dict[str, Structure | None] = {}
        self._copies: dict[str, dict[str, int]] = {}
        self.attempt = self._newest() if attempt is None else attempt
        self._look()
        if not self._readers:
            find(self._folder, attempt=attempt, rank=0)  # says what is wrong
            raise RunError("a run with recorded steps", f"'{self._name}', whose files are empty", "wait a second")

    def __enter__(self) -> MergedRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; a second call does nothing."""
        for reader in self._readers.values():
            reader.close()

    # what there is

    @property
    def name(self) -> str:
        """The run's folder, as it was given."""
        return self._name

    @property
    def attempts(self) -> Sequence[int]:
        """The runs recorded in the same folder."""
        return sorted({file.attempt for file in run_files(self._folder)})

    @property
    def recorded(self) -> Sequence[int]:
        """The ranks that have a file."""
        return sorted(self._readers)

    @property
    def steps(self) -> int:
        """The last step that any rank knows."""
        with self.moment() as readers:
            return max(each.steps for each in readers)

    @property
    def durable_step(self) -> int:
        """The last step that a crash cannot lose, on any rank."""
        with self.moment() as readers:
            return min(each.durable_step for each in readers)

    def streams(self) -> Sequence[str]:
        """Names of the models watched."""
        with self.moment() as readers:
            return _union(each.streams() for each in readers)

    def structure(self, stream: str = "net") -> Structure | None:
        """The model's structure as the first rank has it that saw its flow of data; what any rank did not see."""
        with self.moment() as readers:
            if stream not in self._structures:
                found = [each for reader in readers if (each := reader.structure(stream)) is not None]
                first = next((each for each in found if each.order), found[0] if found else None)
                if first is not None:
                    first = replace(first, not_seen=tuple(_union(each.not_seen for each in (first, *found))))
                self._structures[stream] = first
            return self._structures[stream]

    def sites(
        self, *, port: Port | None = None, phase: Phase | None = None, stream: str | None = None
    ) -> Sequence[Site]:
        """The sites seen, in the order of their first observation."""
        with self.moment() as readers:
            return _union(each.sites(port=port, phase=phase, stream=stream) for each in readers)

    def value_names(self, stream: str = "net") -> Sequence[str]:
        """Names of the cheap series."""
        with self.moment() as readers:
            return _union(each.value_names(stream) for each in readers)

    def measures(self) -> Sequence[str]:
        """Names of the measures that have readings."""
        with self.moment() as readers:
            return _union(each.measures() for each in readers)

    # series

    def values(self, name: str, stream: str = "net") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and values of a cheap series; two empty arrays when there is none."""
        with self.moment() as readers:
            parts = [each.values(name, stream) for each in readers]
            if name not in merging.NORMS or not self._shards(stream):
                return merging.values([part for part in parts if len(part[0])] or parts[:1])
            if len(parts) < self._ranks():
                return np.array([], np.int64), np.array([], np.float64)
            return merging.values(parts, sharded=True)

    def readings(
        self, measure: str, site: Site | None = None, *, lag: int | None = None, every: Every = 1
    ) -> Sequence[Reading]:
        """Readings of a measure, of one site or all, of one lag decade or all; `every` as one file has it."""
        with self.moment() as readers:
            parts = _grouped([each.readings(measure, site, lag=lag, every=every) for each in readers])
            over = merging.RATIOS.get(measure)
            weights = None if site is None else site.at(port="weight")
            sizes = _grouped([each.readings(over, weights, every=every) for each in readers] if over else [])
            merged = (self._merged(each, sizes) for each in parts.values())
            return sorted((each for each in merged if each is not None), key=lambda reading: reading.step)

    def _merged(self, parts: list[Reading], sizes: dict[_Place, list[Reading]]) -> Reading | None:
        first = parts[0]
        site, measure = first.site, first.measure
        if measure not in merging.NORMS and measure not in merging.RATIOS:
            return merging.reading(parts)
        if site.port == "grad_output":
            # Squares are of each rank's rows; those of ranks that lack this step are taken to be like the others'.
            missing = self._ranks() / len(parts)
            merged = merging.reading(parts)
            return replace(merged, value=merged.value * math.sqrt(missing)) if missing > 1 else merged
        copies = self._shards(site.stream).get(f"{site.module}.{site.leaf}" if site.module else site.leaf)
        if copies is None:
            return merging.reading(parts, copies=len(parts))  # the same on all ranks
        if len(parts) < self._ranks():
            return None
        others = sizes.get((first.step, site.at(port="weight"), None), []) if measure in merging.RATIOS else []
        if measure in merging.RATIOS and len(others) < len(parts):
            return None
        return merging.reading(parts, copies=copies, others=others)

    def summaries(self, site: Site, *, every: Every = 1) -> Sequence[tuple[int, Statistic]]:
        """`(step, stats.Summary)` of a site; `every` as for readings."""
        with self.moment() as readers:
            return _added([each.summaries(site, every=every) for each in readers])

    def channels(self, site: Site, *, every: Every = 1) -> Sequence[tuple[int, Statistic]]:
        """`(step, stats.ChannelMoments)` of a site; `every` as for readings."""
        with self.moment() as readers:
            return _added([each.channels(site, every=every) for each in readers])

    # what happened

    def tables(self, measure: str) -> Sequence[Table]:
        """Tables of a measure, of the first rank that has any: profiles of ranks do not add up."""
        with self.moment() as readers:
            return next((found for each in readers if (found := each.tables(measure))), ())

    def events(self, kind: EventKind | None = None) -> Sequence[Event]:
        """What happened on all ranks, each with its rank in the message and in `data["rank"]`; and which ranks lack."""
        with self.moment():
            found = [
                replace(event, message=f"rank {rank}: {event.message}", data={**event.data, "rank": rank})
                for rank, reader in self._readers.items()
                for event in reader.events(kind)
            ]
            lacking = list(self._lacking()) if kind in (None, "monitor-error") else []
        return sorted([*found, *lacking], key=lambda event: event.step)

    def _lacking(self) -> Iterator[Event]:
        """Events for ranks without a file, and for files that end early."""
        ranks = self._ranks()
        missing = [rank for rank in range(ranks) if rank not in self._readers]
        if missing:
            names = f"{'rank' if len(missing) == 1 else 'ranks'} {', '.join(map(str, missing))}"
            yield Event(
                0,
                "monitor-error",
                f"of {ranks} ranks, {names} recorded nothing: figures are of the others' batches, and norms of sharded "
                "tensors are left out",
                data={"missing": missing},
            )
        ends = {rank: reader.steps for rank, reader in self._readers.items()}
        last = max(ends.values())
        for rank, end in ends.items():
            if last - end > BEHIND:
                yield Event(
                    end,
                    "monitor-error",
                    f"rank {rank} recorded nothing after step {end}, others went on to {last}: what follows is theirs",
                    data={"rank": rank},
                )

    # who holds what

    def _ranks(self) -> int:
        """How many processes trained together."""
        structures = [found for stream in self.streams() if (found := self.structure(stream)) is not None]
        return max([max(self._readers) + 1, *(each.ranks for each in structures)])

    def _shards(self, stream: str) -> dict[str, int]:
        """Full names of the sharded parameters → how many ranks hold each of their elements."""
        if stream not in self._copies:
            structure = self.structure(stream)
            self._copies[stream] = (
                {}
                if structure is None
                else {
                    parameter.name: parameter.copies
                    for module in structure.modules
                    for parameter in module.parameters
                    if parameter.copies < structure.ranks
                }
            )
        return self._copies[stream]

    # one moment of all files

    @contextmanager
    def moment(self) -> Iterator[Sequence[RunReader]]:
        """Let all answers inside be of the same moment of each file.

        Yields:
            The readers, by rank.
        """
        with self._lock, ExitStack() as stack:
            if not self._inside:
                if len(self._readers) < self._expected:
                    self._look()
                self._inside = True
                stack.callback(setattr, self, "_inside", False)
                for reader in self._readers.values():
                    stack.enter_context(reader.moment())
                versions = tuple(reader.version for reader in self._readers.values())
                if versions != self._versions:
                    self._versions = versions
                    self._structures.clear()
                    self._copies.clear()
                    for reader in self._readers.values():
                        reader.align(list(self._readers.values()))
            yield list(self._readers.values())

    @property
    def _expected(self) -> int:
        return max((found.ranks for found in self._structures.values() if found is not None), default=1)

    def _newest(self) -> int:
        try:
            files = [file for file in run_files(self._folder) if file.path.stat().st_size]
        except OSError:
            files = []
        return max((file.attempt for file in files), default=1)

    def _look(self) -> None:
        """Open the files of ranks that are there and were not before."""
        files: list[RunFile] = run_files(self._folder) if self._folder.is_dir() else []
        for file in files:
            if file.attempt == self.attempt and file.rank not in self._readers and file.path.stat().st_size:
                self._readers[file.rank] = RunReader(self._folder, attempt=file.attempt, rank=file.rank)
        self._readers = dict(sorted(self._readers.items()))


_Place = tuple[int, Site, int | None]
_T = TypeVar("_T")


def _union(parts: Iterable[Sequence[_T]]) -> list[_T]:
    """Everything once, in the order of the first that has it."""
    return list(dict.fromkeys(each for part in parts for each in part))


def _grouped(parts: Sequence[Sequence[Reading]]) -> dict[_Place, list[Reading]]:
    """Readings of the same step, site and lag, one a rank; in the order of the first rank that has them."""
    found: dict[_Place, list[Reading]] = {}
    for part in parts:
        for each in part:
            found.setdefault((each.step, each.site, each.lag_decade), []).append(each)
    return found


def _added(parts: Sequence[Sequence[tuple[int, Statistic]]]) -> list[tuple[int, Statistic]]:
    """Statistics of the same step added up."""
    found: dict[int, list[Statistic]] = {}
    for part in parts:
        for step, each in part:
            found.setdefault(step, []).append(each)
    return [(step, merging.statistic(each)) for step, each in sorted(found.items())]
