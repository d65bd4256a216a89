"""`Believable`: a history without the drifts of layers whose signal collapsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from holdfast.core.finding import Diagnosis
from holdfast.core.protocols import History
from holdfast.core.reading import Reading, Table
from holdfast.core.site import Site
from holdfast.diagnosis.remembered import Remembered
from holdfast.measures.attribution import TABLES as ATTRIBUTION

COLLAPSED = "collapsed-signal"
"""The rule that says where samples cannot be told apart: a drift there would be counted in units of nothing."""

DRIFTS = frozenset(
    {
        "drift-gain",
        "observed-drift",
        "parameter-drift",
        "parameter-share",
        "sampling-drift",
        "scale-shift",
    }
)
"""Measures counted in a feature's SD, or made of such figures."""


class Believable(Remembered):
    """What a display reads: the run, less the drift figures that its diagnosis says are not to be believed.

    Args:
        history: a run.
        diagnosis: of that run.
    """

    def __init__(self, history: History, diagnosis: Diagnosis) -> None:
        super().__init__(history)
        self.collapsed = frozenset(
            (site.stream, site.module) for finding in diagnosis if finding.rule == COLLAPSED for site in finding.sites
        )
        """`(stream, module)` at whose input the samples cannot be told apart."""

    def readings(self, measure: str, site: Site | None = None, *, lag: int | None = None) -> Sequence[Reading]:
        """Readings of a measure; of a drift, only where there is a unit to count it in."""
        found = super().readings(measure, site, lag=lag)
        if measure not in DRIFTS or not self.collapsed:
            return found
        return [reading for reading in found if (reading.site.stream, reading.site.module) not in self.collapsed]

    def tables(self, measure: str) -> Sequence[Table]:
        """Tables of a measure; of drifts, only the rows where there is a unit to count them in."""
        found = super().tables(measure)
        if measure not in ATTRIBUTION or not self.collapsed:
            return found
        return [self._cut(table) for table in found]

    def _cut(self, table: Table) -> Table:
        sites = [Site.parse(row) for row in table.rows]
        kept = [index for index, site in enumerate(sites) if (site.stream, site.module) not in self.collapsed]
        rows = tuple(table.rows[index] for index in kept)
        return replace(table, rows=rows, values=tuple(table.values[index] for index in kept))
