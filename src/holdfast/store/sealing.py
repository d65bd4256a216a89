"""From the tail's rows to chunks: which rows belong together, and their merged rows at 10, 100 and 1,000 steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from holdfast.store.codec import Rows, Stack, Steps
from holdfast.store.rollup import LEVELS, merge
from holdfast.store.schema import Kind


@dataclass(frozen=True, slots=True)
class Layout:
    """Which series one record has figures of, and how many of each.

    Args:
        series: `(k,)`.
        widths: `(k,)`.
        ends: `(k,)`, the end of each in the record's vector.
    """

    series: NDArray[np.uint32]
    widths: NDArray[np.uint32]
    ends: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TailRow:
    """One record's figures.

    Args:
        id: of the row in the database.
        stream: number of the model.
        step: of the record.
        layout: of `vector`.
        vector: all figures.
    """

    id: int
    stream: int
    step: int
    layout: Layout
    vector: NDArray[np.float64]


class Group(NamedTuple):
    """Series of one kind and width that have rows at the same steps."""

    kind: Kind
    series: tuple[int, ...]
    steps: Steps
    stack: Stack


Pieces = dict[tuple[int, int], list[tuple[Steps, Rows]]]
"""Rows of each (series, width), as they come."""


def raw_groups(tail: Iterable[TailRow], kinds: Mapping[int, Kind]) -> list[Group]:
    """Sort records by series.

    Args:
        tail: of one stream.
        kinds: of each series.

    Returns:
        The groups.
    """
    alike: dict[int, list[TailRow]] = {}
    for row in tail:
        alike.setdefault(id(row.layout), []).append(row)
    pieces: Pieces = {}
    for rows in alike.values():
        layout = rows[0].layout
        steps = np.array([row.step for row in rows], np.int64)
        figures = np.stack([row.vector for row in rows])
        start = 0
        for series, end in zip(layout.series.tolist(), layout.ends.tolist(), strict=True):
            pieces.setdefault((series, end - start), []).append((steps, figures[:, start:end]))
            start = end
    return _grouped(pieces, kinds)


def regrouped(groups: Iterable[Group]) -> list[Group]:
    """Bring the rows of each series together, in rising order of step.

    Args:
        groups: a series may occur in several.

    Returns:
        Groups in which each series (of one width) occurs once.
    """
    groups = list(groups)
    alike: dict[tuple[tuple[int, ...], int], list[Group]] = {}
    for group in groups:
        alike.setdefault((group.series, group.stack.shape[2]), []).append(group)
    if len({key for series, _ in alike for key in series}) == sum(len(series) for series, _ in alike):
        return [_joined(each) for each in alike.values()]
    pieces: Pieces = {}
    kinds: dict[int, Kind] = {}
    for group in groups:
        for series, rows in zip(group.series, group.stack, strict=True):
            kinds[series] = group.kind
            pieces.setdefault((series, rows.shape[1]), []).append((group.steps, rows))
    return _grouped(pieces, kinds)


def _joined(groups: list[Group]) -> Group:
    if len(groups) == 1:
        return groups[0]
    steps = np.concatenate([group.steps for group in groups])
    order = np.argsort(steps, kind="stable")
    stack = np.concatenate([group.stack for group in groups], axis=1)
    return Group(groups[0].kind, groups[0].series, steps[order], stack[:, order])


def _grouped(pieces: Pieces, kinds: Mapping[int, Kind]) -> list[Group]:
    together: dict[tuple[Kind, int, bytes], list[tuple[int, Steps, Rows]]] = {}
    for (series, width), parts in pieces.items():
        steps, rows = parts[0] if len(parts) == 1 else in_order(parts)
        together.setdefault((kinds[series], width, steps.tobytes()), []).append((series, steps, rows))
    return [
        Group(kind, tuple(series for series, _, _ in each), each[0][1], np.stack([rows for _, _, rows in each]))
        for (kind, _, _), each in together.items()
    ]


def in_order(parts: list[tuple[Steps, Rows]]) -> tuple[Steps, Rows]:
    """Join rows of one series by step.

    Args:
        parts: one or more, of equal width.

    Returns:
        `(rows,)` steps, not falling, and the rows.
    """
    steps = np.concatenate([steps for steps, _ in parts])
    rows = np.concatenate([rows for _, rows in parts])
    if (np.diff(steps) >= 0).all():
        return steps, rows
    order = np.argsort(steps, kind="stable")
    return steps[order], rows[order]


@dataclass(frozen=True, slots=True)
class Ladder:
    """What one stream has rolled up so far and not yet written. Never changed in place: a seal makes the next one.

    Args:
        open: by level, rows of buckets that are not complete.
        ready: by level, complete rows that wait to be written.
        written: by kind and level, the last step whose rows are in the file.
    """

    open: Mapping[int, list[Group]] = field(default_factory=dict)
    ready: Mapping[int, list[Group]] = field(default_factory=dict)
    written: Mapping[tuple[Kind, int], int] = field(default_factory=dict)

    def climb(self, raw: list[Group], boundary: int, *, rows: int, final: bool) -> tuple[Ladder, list[Chunk]]:
        """Roll sealed rows up.

        Args:
            raw: the sealed rows; their steps end at `boundary`.
            boundary: a multiple of 10, but for the last seal of a run.
            rows: how many rows of a level make a chunk.
            final: nothing comes after: write what waits.

        Returns:
            The next ladder, and what is to be written.
        """
        opened: dict[int, list[Group]] = {}
        ready: dict[int, list[Group]] = {}
        written = dict(self.written)
        chunks: list[Chunk] = []
        news = [group for group in raw if group.kind != "value"]  # cheap values are kept raw for ever
        for level in LEVELS[1:]:
            # Channels have no raw chunks, so that their last, incomplete bucket of 10 has to be written too.
            complete, opened[level] = _complete(
                regrouped([*self.open.get(level, ()), *news]), level, boundary, "channels" if final else None
            )
            waiting = [*self.ready.get(level, ()), *complete]
            for kind in sorted({group.kind for group in waiting}):
                due = final or kind == "channels" or boundary - written.get((kind, level), 0) >= rows * level
                mine = [group for group in waiting if group.kind == kind]
                if due:
                    chunks += [Chunk(level, group) for group in regrouped(mine)]
                    written[kind, level] = boundary // level * level
                else:
                    ready[level] = [*ready.get(level, ()), *mine]
            news = complete
        return Ladder(opened, ready, written), chunks


class Chunk(NamedTuple):
    """Rows to be written."""

    level: int
    group: Group


def _complete(groups: list[Group], level: int, boundary: int, all_of: Kind | None) -> tuple[list[Group], list[Group]]:
    """Merge into buckets; those that end by the boundary are complete, the others stay open."""
    complete, opened = [], []
    for group in groups:
        steps, stack = merge(group.kind, level, group.steps, group.stack)
        count = int(np.searchsorted(-(-steps // level) * level, boundary, side="right"))
        if group.kind == all_of and level == LEVELS[1]:
            count = len(steps)
        if count:
            complete.append(Group(group.kind, group.series, steps[:count], stack[:, :count]))
        if count < len(steps):
            opened.append(Group(group.kind, group.series, steps[count:], stack[:, count:]))
    return complete, opened
