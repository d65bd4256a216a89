"""Readings as dots with their intervals and floors, one row a layer, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import plotly.graph_objects as go

from holdfast.core.reading import Reading
from holdfast.figures.theme import ALERT, FLOOR, SERIES
from holdfast.figures.wording import described, safe

SYMBOLS = ("circle", "diamond", "square", "triangle-up")


def add_dots(
    figure: go.Figure,
    rows: Sequence[tuple[str, Reading]],
    *,
    name: str,
    column: int | None = None,
    symbol: str = "circle",
    colour: str = SERIES[0],
    faint: bool = False,
    floors: Literal["named", "unnamed"] | None = None,
    least: float | None = None,
) -> None:
    """Draw one reading a row: a full dot above noise, an open one within it, a red cross where it is not finite.

    A value of zero (or less) has no place on a logarithmic axis: it is a triangle that points left of all others.

    Args:
        figure: drawn into.
        rows: label of the row on the category axis, and its reading.
        name: for the legend.
        column: of the subplot, `None` in a figure without subplots.
        symbol: Plotly's name of the marker.
        colour: of marks and bars.
        faint: draw grey and open, without intervals: a series to compare with.
        floors: draw the noise floors as strokes of the same colour, with an entry in the legend or without.
        least: where a value of zero is drawn; `None` takes the least value of this series.
    """
    where = {} if column is None else {"row": 1, "col": column}
    # Full marks first: the legend shows the first mark.
    finite = sorted((row for row in rows if math.isfinite(row[1].value)), key=lambda row: not row[1].above_noise)
    broken = [row for row in rows if not math.isfinite(row[1].value)]
    positive = [each.value for _, each in finite if each.value > 0]
    least = least or min(positive, default=1.0) / 1.5
    # Marks of a deep network would hide each other.
    size = 8 if len(rows) <= 60 else 6 if len(rows) <= 150 else 4
    if finite:
        figure.add_scatter(
            x=[max(each.value, least) for _, each in finite],
            y=[label for label, _ in finite],
            mode="markers",
            marker={
                "size": 0.75 * size if faint else size,
                "symbol": [_symbol(each, symbol, faint) for _, each in finite],
                "color": FLOOR if faint else colour,
            },
            error_x=_bars([each for _, each in finite], least) if not faint else None,
            customdata=_boxes(finite),
            hovertemplate=f"<b>%{{y}}</b>, %{{customdata}}<extra>{safe(name)}</extra>",
            name=name,
            **where,
        )
    if broken:
        figure.add_scatter(
            x=[least] * len(broken),
            y=[label for label, _ in broken],
            mode="markers",
            marker={"symbol": "x", "size": 9, "color": ALERT},
            customdata=_boxes(broken),
            hovertemplate="<b>%{y}</b>, %{customdata}<extra></extra>",
            name=f"{name}, not finite",
            **where,
        )
    strokes = [(label, each) for label, each in rows if floors is not None and (each.noise_floor or 0.0) > 0]
    if strokes:
        figure.add_scatter(
            x=[each.noise_floor for _, each in strokes],
            y=[label for label, _ in strokes],
            mode="markers",
            marker={
                "symbol": "line-ns",
                "size": 1.5 * size,
                "line": {"width": size / 4, "color": colour},
                "color": colour,
            },
            opacity=0.6,
            hovertemplate=f"<b>%{{y}}</b><br>noise floor of the {safe(name)}: %{{x:.3g}}<extra></extra>",
            name="noise floor of each, in its colour",
            showlegend=floors == "named",
            **where,
        )


def shown_values(readings: Iterable[Reading]) -> list[float]:
    """Every value that the axis of `add_dots` must hold: figures, ends of intervals, floors.

    Args:
        readings: those drawn.

    Returns:
        Values, some perhaps not finite or not positive.
    """
    values: list[float] = []
    for each in readings:
        values += [each.value, *((each.noise_floor,) if each.noise_floor is not None else ())]
        # An end far below the value would squeeze everything else: the bar may leave the axis.
        values += [end for end in each.interval or () if each.value / 30 < end]
    return values


def _symbol(reading: Reading, symbol: str, faint: bool) -> str:
    if reading.value <= 0:
        return "triangle-left-open"  # it lies further left than a logarithm can say
    return symbol if reading.above_noise and not faint else f"{symbol}-open"


def _bars(readings: Sequence[Reading], least: float) -> dict[str, object] | None:
    """Error bars of the readings that have an interval and a place on the axis."""
    up: list[float | None] = []
    down: list[float | None] = []
    for each in readings:
        low, high = each.interval if each.interval is not None and each.value > 0 else (math.nan, math.nan)
        up.append(max(0.0, high - each.value) if math.isfinite(high) else None)
        down.append(max(0.0, each.value - max(low, least / 1e3)) if math.isfinite(low) else None)
    if not any(up) and not any(down):
        return None
    few = len(readings) <= 60
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "thickness": 1.6 if few else 0.8,
        "width": 3 if few else 0,
    }


def _boxes(rows: Sequence[tuple[str, Reading]]) -> list[str]:
    return [f"step {each.step}<br>{described(each)}" for _, each in rows]
