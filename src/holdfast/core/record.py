"""`StepRecord`: everything observed at one optimiser step, on its way from the monitor to a sink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from holdfast.core.event import Event
from holdfast.core.reading import Reading, Table
from holdfast.core.site import Site
from holdfast.core.statistic import Statistic


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one optimiser step left behind.

    Args:
        step: the optimiser step, from 1.
        stream: which model.
        values: cheap series kept at every step: `"loss"`, `"gradient-norm"`, `"learning-rate"`, ….
        summaries: the `stats.Summary` of each observed site.
        channels: the `stats.ChannelMoments` of each observed site.
        readings: what the measures gave.
        tables: profiles and matrices.
        events: what happened.
        pinned: keep the raw step when the ring of raw steps moves on (it lies in an alarm's window).
    """

    step: int
    stream: str = "net"
    values: Mapping[str, float] = field(default_factory=dict)
    summaries: Mapping[Site, Statistic] = field(default_factory=dict)
    channels: Mapping[Site, Statistic] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()
    tables: tuple[Table, ...] = ()
    events: tuple[Event, ...] = ()
    pinned: bool = False

    def coarsened(self) -> StepRecord:
        """The record without what is bulky: values and events only."""
        return replace(self, summaries={}, channels={}, readings=(), tables=())
