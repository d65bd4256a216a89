"""`MemoryRun`: a run that lives in memory; a sink and a history in one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.core.event import Event, EventKind
from holdfast.core.reading import Reading, Table
from holdfast.core.record import StepRecord
from holdfast.core.site import Phase, Port, Site
from holdfast.core.statistic import Statistic
from holdfast.core.structure import Structure
from holdfast.stats.packed import Packed


class MemoryRun:
    """A run kept in memory: what a test of a rule writes, what `preflight` watches into.

    Everything is kept raw; nothing is rolled up or dropped.

    Args:
        name: what reports call it.

    Example:
        >>> run = MemoryRun("example")
        >>> run.write(StepRecord(1, values={"loss": 2.5}))
        >>> run.steps, run.values("loss")[1].tolist()
        (1, [2.5])
    """

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self._structures: dict[str, Structure] = {}
        self._records: list[StepRecord] = []
        self._sites: dict[Site, None] = {}  # an ordered set

    # as a sink

    def describe(self, structure: Structure) -> None:
        """Keep a model's structure."""
        self._structures[structure.stream] = structure

    def write(self, record: StepRecord) -> None:
        """Take one step's record."""
        self._records.append(record)
        for site in (*record.summaries, *record.channels, *(reading.site for reading in record.readings)):
            self._sites.setdefault(site)

    @property
    def durable_step(self) -> int:
        """Always 0: memory survives no crash."""
        return 0

    @property
    def seconds(self) -> float:
        """Nothing is written."""
        return 0.0

    def close(self) -> None:
        """Nothing to do."""

    # as a history

    @property
    def name(self) -> str:
        """What it was called."""
        return self._name

    @property
    def steps(self) -> int:
        """The last step written."""
        return max((record.step for record in self._records), default=0)

    def streams(self) -> Sequence[str]:
        """Names of the models watched, in order of appearance."""
        return list(dict.fromkeys([*self._structures, *(record.stream for record in self._records)]))

    def structure(self, stream: str = "net") -> Structure | None:
        """The model's structure, `None` when it was not recorded."""
        return self._structures.get(stream)

    def sites(
        self, *, port: Port | None = None, phase: Phase | None = None, stream: str | None = None
    ) -> Sequence[Site]:
        """The sites seen, in the order of their first observation."""
        return [
            site
            for site in self._sites
            if port in (None, site.port) and phase in (None, site.phase) and stream in (None, site.stream)
        ]

    def values(self, name: str, stream: str = "net") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and values of a cheap series."""
        pairs = [(each.step, each.values[name]) for each in self._of(stream) if name in each.values]
        return np.array([step for step, _ in pairs], np.int64), np.array([value for _, value in pairs], np.float64)

    def value_names(self, stream: str = "net") -> Sequence[str]:
        """Names of the cheap series."""
        return list(dict.fromkeys(name for record in self._of(stream) for name in record.values))

    def measures(self) -> Sequence[str]:
        """Names of the measures that have readings."""
        return list(dict.fromkeys(reading.measure for record in self._records for reading in record.readings))

    def readings(self, measure: str, site: Site | None = None, *, lag: int | None = None) -> Sequence[Reading]:
        """Readings of a measure, of one site or all, of one lag decade or all."""
        return [
            reading
            for record in self._records
            for reading in record.readings
            if reading.measure == measure and site in (None, reading.site) and lag in (None, reading.lag_decade)
        ]

    def summaries(self, site: Site) -> Sequence[tuple[int, Statistic]]:
        """`(step, stats.Summary)` of a site."""
        return [(record.step, _plain(record.summaries[site])) for record in self._records if site in record.summaries]

    def channels(self, site: Site) -> Sequence[tuple[int, Statistic]]:
        """`(step, stats.ChannelMoments)` of a site."""
        return [(record.step, _plain(record.channels[site])) for record in self._records if site in record.channels]

    def tables(self, measure: str) -> Sequence[Table]:
        """Tables of a measure."""
        return [table for record in self._records for table in record.tables if table.measure == measure]

    def events(self, kind: EventKind | None = None) -> Sequence[Event]:
        """What happened, of one kind or of all."""
        return [event for record in self._records for event in record.events if kind in (None, event.kind)]

    def _of(self, stream: str) -> Iterator[StepRecord]:
        return (record for record in self._records if record.stream == stream)


def _plain(statistic: Statistic) -> Any:
    return statistic.unpacked if isinstance(statistic, Packed) else statistic
