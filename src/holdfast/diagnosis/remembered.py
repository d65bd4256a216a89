"""`Remembered`: a history that reads nothing twice, because eleven rules ask for the same readings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from holdfast.core.event import Event, EventKind
from holdfast.core.protocols import History
from holdfast.core.reading import Reading, Table
from holdfast.core.site import Phase, Port, Site
from holdfast.core.statistic import Statistic
from holdfast.core.structure import Structure

T = TypeVar("T")


class Remembered:
    """A history whose answers are kept: one state of a run that may still be growing.

    Args:
        history: asked once for each question.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._answers: dict[Hashable, Any] = {}

    def _ask(self, question: Hashable, ask: Callable[[], T]) -> T:
        if question not in self._answers:
            self._answers[question] = ask()
        answer: T = self._answers[question]
        return answer

    @property
    def name(self) -> str:
        """The run's name."""
        return self._history.name

    @property
    def steps(self) -> int:
        """The last optimiser step that the run knows."""
        return self._ask("steps", lambda: self._history.steps)

    def streams(self) -> Sequence[str]:
        """Names of the models watched."""
        return self._ask("streams", self._history.streams)

    def structure(self, stream: str = "net") -> Structure | None:
        """The model's structure."""
        return self._ask(("structure", stream), lambda: self._history.structure(stream))

    def sites(
        self, *, port: Port | None = None, phase: Phase | None = None, stream: str | None = None
    ) -> Sequence[Site]:
        """The sites that have a figure."""
        ask = self._history.sites
        return self._ask(("sites", port, phase, stream), lambda: ask(port=port, phase=phase, stream=stream))

    def values(self, name: str, stream: str = "net") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and values of a cheap series."""
        return self._ask(("values", name, stream), lambda: self._history.values(name, stream))

    def value_names(self, stream: str = "net") -> Sequence[str]:
        """Names of the cheap series."""
        return self._ask(("value_names", stream), lambda: self._history.value_names(stream))

    def measures(self) -> Sequence[str]:
        """Names of the measures that have readings."""
        return self._ask("measures", self._history.measures)

    def readings(self, measure: str, site: Site | None = None, *, lag: int | None = None) -> Sequence[Reading]:
        """Readings of a measure."""
        ask = self._history.readings
        return self._ask(("readings", measure, site, lag), lambda: ask(measure, site, lag=lag))

    def summaries(self, site: Site) -> Sequence[tuple[int, Statistic]]:
        """`(step, stats.Summary)` of a site."""
        return self._ask(("summaries", site), lambda: self._history.summaries(site))

    def channels(self, site: Site) -> Sequence[tuple[int, Statistic]]:
        """`(step, stats.ChannelMoments)` of a site."""
        return self._ask(("channels", site), lambda: self._history.channels(site))

    def tables(self, measure: str) -> Sequence[Table]:
        """Tables of a measure."""
        return self._ask(("tables", measure), lambda: self._history.tables(measure))

    def events(self, kind: EventKind | None = None) -> Sequence[Event]:
        """What happened."""
        return self._ask(("events", kind), lambda: self._history.events(kind))
