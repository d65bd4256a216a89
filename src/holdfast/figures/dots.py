"""Readings as dots with their intervals and floors, one row a layer, on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from holdfast.core.reading import Reading
from holdfast.figures.theme import ALERT, FAINT, FLOOR
from holdfast.figures.wording import described, safe

SYMBOLS = ("circle", "diamond", "square", "triangle-up")


def add_dots(
    figure: go.Figure,
    rows: Sequence[tuple[str, Reading]],
    *,
    name: str,
    column: int | None = None,
    symbol: str = "circle",
    faint: bool = False,
    floors: bool = False,
) -> None:
    """Draw one reading a row: a full dot above noise, an open one within it, a red cross where it is not finite.

    A value of zero (or less) has no place on a logarithmic axis: it is drawn at the axis' lower end and its box
    tells the value.

    Args:
        figure: drawn into.
        rows: label of the row on the category axis, and its reading.
        name: for the legend.
        column: of the subplot, `None` in a figure without subplots.
        symbol: Plotly's name of the marker.
        faint: draw grey and open, without intervals: a series to compare with.
        floors: draw the noise floors as grey strokes.
    """
    where = {} if column is None else {"row": 1, "col": column}
    finite = [(label, each) for label, each in rows if math.isfinite(each.value)]
    broken = [(label, each) for label, each in rows if not math.isfinite(each.value)]
    positive = [each.value for _, each in finite if each.value > 0]
    least = min(positive, default=1.0) / 2
    if finite:
        values = [max(each.value, least) for _, each in finite]
        intervals = [each.interval or (value, value) for (_, each), value in zip(finite, values, strict=True)]
        figure.add_scatter(
            x=values,
            y=[label for label, _ in finite],
            mode="markers",
            marker={
                "size": 8 if not faint else 6,
                "symbol": [
                    symbol if each.above_noise and each.value > 0 and not faint else f"{symbol}-open"
                    for _, each in finite
                ],
                **({"color": FAINT} if faint else {}),
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [
                    max(0.0, high - value) if math.isfinite(high) else 0.0
                    for (_, high), value in zip(intervals, values, strict=True)
                ],
                "arrayminus": [
                    max(0.0, value - max(low, least)) if math.isfinite(low) else 0.0
                    for (low, _), value in zip(intervals, values, strict=True)
                ],
                "thickness": 1.6,
                "width": 3,
                "visible": not faint and any(each.interval is not None for _, each in finite),
            },
            customdata=_boxes(finite),
            hovertemplate="%{customdata}<extra></extra>",
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
            hovertemplate="%{customdata}<extra></extra>",
            name=f"{name}, not finite",
            **where,
        )
    strokes = [
        (label, each) for label, each in rows if floors and each.noise_floor is not None and each.noise_floor > 0
    ]
    if strokes:
        figure.add_scatter(
            x=[each.noise_floor for _, each in strokes],
            y=[label for label, _ in strokes],
            mode="markers",
            marker={"symbol": "line-ns", "size": 11, "line": {"width": 2, "color": FLOOR}, "color": FLOOR},
            customdata=_boxes(strokes),
            hovertemplate="noise floor of<br>%{customdata}<extra></extra>",
            name=f"{name}: its noise floor",
            **where,
        )


def _boxes(rows: Sequence[tuple[str, Reading]]) -> list[str]:
    return [
        f"<b>{safe(each.site.label)}</b>, step {each.step}<br>{safe(each.measure)}: {described(each)}"
        for _, each in rows
    ]
