"""What the floors promise each other: where records go, where rules read, how layers hand out statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast.core.event import Event, EventKind
from holdfast.core.reading import Reading, Table
from holdfast.core.record import StepRecord
from holdfast.core.site import Phase, Port, Site
from holdfast.core.statistic import Statistic
from holdfast.core.structure import Structure


@runtime_checkable
class Sink(Protocol):
    """Where the monitor puts what it observed. Never raises into training, never blocks it."""

    def describe(self, structure: Structure) -> None:
        """Keep a model's structure; a later one of the same stream replaces it."""
        ...

    def write(self, record: StepRecord) -> None:
        """Take one step's record. Steps of one stream come in rising order."""
        ...

    @property
    def durable_step(self) -> int:
        """The last step that a crash of this process cannot lose; 0 before the first."""
        ...

    @property
    def seconds(self) -> float:
        """Processor time that writing has taken so far, beside the training thread."""
        ...

    def close(self) -> None:
        """Write what is still on its way; a second call does nothing."""
        ...


@runtime_checkable
class History(Protocol):
    """What a rule, a figure or a report reads: a run, without its database and without its model.

    Sequences are in rising order of step; sites in the order of their first observation, which is the order of
    execution.
    """

    @property
    def name(self) -> str:
        """The run's name: its path, or what it was given."""
        ...

    @property
    def steps(self) -> int:
        """The last optimiser step that the run knows; 0 when it has none."""
        ...

    def streams(self) -> Sequence[str]:
        """Names of the models watched."""
        ...

    def structure(self, stream: str = "net") -> Structure | None:
        """The model's structure, `None` when it was not recorded."""
        ...

    def sites(
        self, *, port: Port | None = None, phase: Phase | None = None, stream: str | None = None
    ) -> Sequence[Site]:
        """The sites that have a summary, channel statistics or a reading."""
        ...

    def values(self, name: str, stream: str = "net") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and values of a cheap series such as `"loss"`; two empty arrays when there is none."""
        ...

    def value_names(self, stream: str = "net") -> Sequence[str]:
        """Names of the cheap series."""
        ...

    def measures(self) -> Sequence[str]:
        """Names of the measures that have readings."""
        ...

    def readings(self, measure: str, site: Site | None = None, *, lag: int | None = None) -> Sequence[Reading]:
        """Readings of a measure, of one site or of all, of one lag decade (1, 10, 100, …) or of all."""
        ...

    def summaries(self, site: Site) -> Sequence[tuple[int, Statistic]]:
        """`(step, stats.Summary)` of a site."""
        ...

    def channels(self, site: Site) -> Sequence[tuple[int, Statistic]]:
        """`(step, stats.ChannelMoments)` of a site."""
        ...

    def tables(self, measure: str) -> Sequence[Table]:
        """Tables of a measure."""
        ...

    def events(self, kind: EventKind | None = None) -> Sequence[Event]:
        """What happened, of one kind or of all."""
        ...


@runtime_checkable
class Telemetry(Protocol):
    """A layer that hands out the statistics it computes anyway, so that the monitor need not read the tensor."""

    def telemetry(self) -> Mapping[str, torch.Tensor]:
        """The last step's statistics by name (`"mean"`, `"variance"`, …), each one value per statistic."""
        ...
