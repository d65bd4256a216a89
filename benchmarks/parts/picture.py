"""The picture of the overheads: dots by arm above, lines as networks grow below, on logarithmic axes of per cent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499")
INK, QUIET, GRID = "#1c2733", "#5b6875", "#e6eaee"
WIDTH, LEFT, RIGHT = 960, 230, 30
TOP, ROW, PANEL, GAP = 96, 30, 220, 110
LEAST = 0.1
"""Per cent; what is less, or negative, lies on the edge as a hollow mark."""

Interval = tuple[float, float, float]
Series = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic axis.

    Args:
        least: value at `start`.
        most: value at `end`.
        start: pixels.
        end: pixels.
    """

    least: float
    most: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies, in pixels; beyond the ends at the end."""
        share = math.log(max(value, self.least) / self.least) / math.log(self.most / self.least)
        return self.start + min(1.0, share) * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        """Powers of ten within."""
        for power in range(math.ceil(math.log10(self.least) - 1e-9), math.floor(math.log10(self.most) + 1e-9) + 1):
            yield 10.0**power


def picture(dots: Mapping[str, Mapping[str, Interval]], series: Series) -> str:
    """An SVG document.

    Args:
        dots: arm → workload → overhead in per cent with the ends of its interval.
        series: what grows → arm → points of size and overhead in per cent.
    """
    values = [end for arm in dots.values() for interval in arm.values() for end in interval]
    values += [value for panel in series.values() for points in panel.values() for _, value in points]
    most = 10.0 ** math.ceil(math.log10(max(100.0, *values)))
    below = TOP + ROW * len(dots) + GAP
    height = below + PANEL + 60 if series else below - 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="system-ui, Segoe UI, Helvetica Neue, Liberation Sans, Arial, sans-serif" font-size="13" '
        'role="img" aria-labelledby="title">',
        '<title id="title">Overhead beyond the bare training step, by monitor and network</title>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        text(LEFT, 28, "Overhead beyond the bare training step, %", size=17, weight=600),
        *_by_arm(dots, most),
        *_growth(series, most, below),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _by_arm(dots: Mapping[str, Mapping[str, Interval]], most: float) -> Iterator[str]:
    axis = Axis(LEAST, most, LEFT, WIDTH - RIGHT)
    names = list(dict.fromkeys(name for arm in dots.values() for name in arm))
    yield from _key(names)
    bottom = TOP + ROW * len(dots)
    for tick in axis.ticks():
        yield line(axis.at(tick), TOP, axis.at(tick), bottom, "#8a96a2" if tick == 1 else GRID)
        yield text(axis.at(tick), bottom + 20, number(tick), anchor="middle", colour=QUIET)
    for row, (arm, found) in enumerate(dots.items()):
        middle = TOP + ROW * (row + 0.5)
        yield text(LEFT - 14, middle + 4, arm, anchor="end")
        for place, name in enumerate(names):
            if name in found:
                y = middle + (place - (len(names) - 1) / 2) * 5.5
                yield from _dot(axis, found[name], y, COLOURS[place % len(COLOURS)])


def _dot(axis: Axis, interval: Interval, y: float, colour: str) -> Iterator[str]:
    value, low, high = interval
    yield line(axis.at(low), y, axis.at(high), y, colour, width=1.5)
    yield circle(axis.at(value), y, colour, hollow=value < LEAST)


def _key(names: Iterable[str]) -> Iterator[str]:
    x = float(LEFT)
    for place, name in enumerate(names):
        y = 52 + 20 * (place // 2)
        x = LEFT + (place % 2) * 330
        yield circle(x + 5, y - 4, COLOURS[place % len(COLOURS)])
        yield text(x + 16, y, name, colour=QUIET)


def _growth(series: Series, most: float, top: float) -> Iterator[str]:
    share = (WIDTH - 70 - RIGHT) / max(1, len(series))
    up = Axis(LEAST, most, top + PANEL, top)
    for place, (title, panel) in enumerate(series.items()):
        left = 70 + place * share
        sizes = [size for points in panel.values() for size, _ in points]
        along = Axis(min(sizes), max(sizes) + 1e-9, left, left + share - 40)
        yield text(left, top - 14, title, weight=600)
        for tick in up.ticks():
            yield line(left, up.at(tick), along.end, up.at(tick), "#8a96a2" if tick == 1 else GRID)
            if place == 0:
                yield text(left - 10, up.at(tick) + 4, number(tick), anchor="end", colour=QUIET)
        for size in dict.fromkeys(sizes):
            yield text(along.at(size), top + PANEL + 20, number(size), anchor="middle", colour=QUIET)
        for colour, (arm, points) in zip(COLOURS, panel.items(), strict=False):
            path = " ".join(f"{along.at(size):.1f},{up.at(value):.1f}" for size, value in points)
            yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            for size, value in points:
                yield circle(along.at(size), up.at(value), colour, hollow=value < LEAST)
            yield text(along.end, up.at(points[-1][1]) - 9, arm, anchor="end", colour=colour, weight=600)


def number(value: float) -> str:
    """`0.1`, `100`, `10,000`."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def text(
    x: float, y: float, words: str, *, anchor: str = "start", colour: str = INK, size: int = 13, weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}" '
        f'font-weight="{weight}">{escape(words)}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width:g}"/>'


def circle(x: float, y: float, colour: str, *, hollow: bool = False) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{"#ffffff" if hollow else colour}" stroke="{colour}"/>'
