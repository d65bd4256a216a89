"""Statistics and readings as rows of figures, and back.

`pack` and `unpack` of a statistic say the same; here they are written out, because a run of 100 sites turns 100
summaries into rows at each step, and a series of 100,000 steps into 10,000 summaries at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.statistic import Statistic
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.counts import Counts
from holdfast.stats.extremes import Extremes
from holdfast.stats.moments import Moments
from holdfast.stats.sketch import Sketch
from holdfast.stats.summary import Summary
from holdfast.store.codec import Rows, Steps

READING = ("value", "low", "high", "floor", "n", "lag", "has")
"""Columns of a raw reading."""
ROLLED = (*READING, "least", "greatest", "count")
"""Columns of merged readings: means over `count` finite values, and the extreme ones."""

_INTERVAL, _FLOOR, _LAG = 1, 2, 4  # bits of "has"

_COUNT = Summary.COLUMNS.index("count")
_MEAN = Summary.COLUMNS.index("mean")
_TOTAL = Summary.COLUMNS.index("total")
_KINDS = len(Counts.COLUMNS)


def statistic_row(statistic: Statistic) -> NDArray[np.float64]:
    """A statistic's `pack`; a `Summary`'s by a shorter way.

    Args:
        statistic: any.

    Returns:
        Its figures.
    """
    if type(statistic) is not Summary:
        return statistic.pack()
    moments, extremes, counts, sketch = statistic.moments, statistic.extremes, statistic.counts, statistic.sketch
    figures = [
        moments.count,
        moments.mean,
        moments.m2,
        moments.m3,
        moments.m4,
        extremes.low,
        extremes.high,
        counts.total,
        counts.zeros,
        counts.nan,
        counts.positive_inf,
        counts.negative_inf,
        counts.beyond,
        sketch.exponent,
        *sketch.bins,
    ]
    return flat(figures)


def summaries(rows: Rows) -> Iterator[Summary]:
    """Read summaries back.

    Args:
        rows: `(rows, len(Summary.COLUMNS))`.

    Yields:
        One summary a row.
    """
    # By columns, and not too many at once: a list for each row keeps the garbage collector busier than all the rest.
    for start in range(0, len(rows), 512):
        part = rows[start : start + 512]
        whole = part[:, [_COUNT, *range(_TOTAL, part.shape[1])]].astype(np.int64).T.tolist()
        tallies, exponents, bins = whole[1 : _KINDS + 1], whole[_KINDS + 1], whole[_KINDS + 2 :]
        for count, mean, m2, m3, m4, low, high, exponent, tally, row in zip(
            whole[0],
            *part[:, _MEAN:_TOTAL].T.tolist(),
            exponents,
            zip(*tallies, strict=True),
            zip(*bins, strict=True),
            strict=True,
        ):
            yield Summary(Moments(count, mean, m2, m3, m4), Extremes(low, high), Counts(*tally), Sketch(exponent, row))


def channels(rows: Rows) -> Iterator[ChannelMoments]:
    """Read statistics of channels back.

    Args:
        rows: `(rows, 4 · channels)`.

    Yields:
        One statistic a row.
    """
    yield from map(ChannelMoments.unpack, rows)


def reading_rows(found: Sequence[Reading]) -> Rows:
    """The figures of readings, in the order of `READING`.

    Args:
        found: any.

    Returns:
        `(readings, len(READING))`; what one does not have is 0 and unset in `has`.
    """
    rows = np.empty((len(found), len(READING)))
    rows[:, 0] = [each.value for each in found]
    intervals = [each.interval for each in found]
    rows[:, 1:3] = [interval or (0.0, 0.0) for interval in intervals]
    floors = [each.noise_floor for each in found]
    rows[:, 3] = [floor or 0.0 for floor in floors]
    rows[:, 4] = [each.n for each in found]
    lags = [each.lag for each in found]
    rows[:, 5] = [lag or 0 for lag in lags]
    rows[:, 6] = [
        _INTERVAL * (interval is not None) + _FLOOR * (floor is not None) + _LAG * (lag is not None)
        for interval, floor, lag in zip(intervals, floors, lags, strict=True)
    ]
    return rows


def readings(measure: str, site: Site, unit: str, steps: Steps, rows: Rows) -> Iterator[Reading]:
    """Read readings back.

    Args:
        measure: of all of them.
        site: of all of them.
        unit: of all of them.
        steps: `(rows,)`.
        rows: `(rows, columns)`, raw or merged.

    Yields:
        One reading a row.
    """
    columns = rows[:, : len(READING)].T.tolist()
    for step, value, low, high, floor, n, lag, has in zip(steps.tolist(), *columns, strict=True):
        flags = int(has)
        yield Reading(
            measure,
            site,
            step,
            value,
            unit,
            int(n),
            floor if flags & _FLOOR else None,
            (low, high) if flags & _INTERVAL else None,
            int(lag) if flags & _LAG else None,
        )


def as_rolled(rows: Rows) -> Rows:
    """Raw readings with the columns of merged ones.

    Args:
        rows: `(..., len(READING))`; merged ones come back as they are.

    Returns:
        `(..., len(ROLLED))`.
    """
    if rows.shape[-1] == len(ROLLED):
        return rows
    value = rows[..., :1]
    return np.concatenate([rows, value, value, np.isfinite(value).astype(np.float64)], axis=-1)


def flat(figures: list[int | float]) -> NDArray[np.float64]:
    """A list of plain numbers as a vector.

    Args:
        figures: floats and ints.

    Returns:
        As float64.
    """
    # half the time of np.array, which looks at each number's type first
    return np.frombuffer(struct.pack(f"<{len(figures)}d", *figures), "<f8").astype(np.float64, copy=False)
