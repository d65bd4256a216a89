"""`norm_axes`: which cells of the samples × channels × positions cube share a statistic, as a row of cubes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from holdfast.core.errors import InputError
from holdfast.figures.canvas import blank, finish
from holdfast.figures.theme import FAINT, SERIES, Theme
from holdfast.figures.wording import safe, shortened

Face = Literal["front", "top", "left"]

# A step along N goes back, up and to the left: the three faces that are seen meet in the first cell.
_BACK = (-0.45, 0.5)
_CUBE = 172
"""Height of a row of cubes with their titles, in pixels."""

# The lightness of a face is what makes a cube of it.
_SHADE: dict[Face, float] = {"front": 0.95, "top": 0.72, "left": 0.5}


def norm_axes(
    pictures: Sequence[tuple[str, Any]],
    *,
    title: str = "Cells that share a statistic with the first one",
    columns: int = 4,
    theme: Theme = "light",
) -> go.Figure:
    """The axes of one or several normalisers: a cube each, of samples by channels by positions.

    The cube is seen from the first cell's corner (a dot), so that the cells on the three faces that are seen tell
    any block that begins there.

    Args:
        pictures: title and booleans `(samples, channels, positions)` of each, such as `NormSpec.cells(4, 6, 6)`
            gives: true where a cell shares a statistic with the first one.
        title: of the whole.
        columns: cubes in a row.
        theme: `"light"` or `"dark"`.

    Returns:
        A figure; N runs backwards, C to the right, positions downwards.

    Raises:
        InputError: an array that is not of booleans on 3 axes, or fewer than 1 column.

    References:
        Wu and He, Group Normalization, 2018, arXiv:1803.08494, figure 2.
    """
    if columns < 1:
        raise InputError("columns of 1 or more", f"columns={columns}", "type: columns=4")
    cubes = [(name, _checked(name, cells)) for name, cells in pictures]
    if not cubes:
        return blank(title, "no normaliser", theme=theme)
    wide, high = _cell_size(cubes)
    figure = go.Figure()
    for shared in (True, False):
        for face in _SHADE:
            corners = [
                corner
                for index, (_, cells) in enumerate(cubes)
                for corner in _outlines(cells, face, shared, (index % columns * wide, -(index // columns) * high))
            ]
            _draw(figure, corners, face, shared=shared)
    for index, (name, cells) in enumerate(cubes):
        _label(figure, name, cells, (index % columns * wide, -(index // columns) * high))
    rows = -(-len(cubes) // columns)
    edge = _BACK[0] * max(cells.shape[0] for _, cells in cubes) - 0.8
    figure.update_xaxes(visible=False, range=[edge, edge + wide * min(columns, len(cubes))], fixedrange=True)
    figure.update_yaxes(visible=False, range=[high * (1 - rows) - (high - _top(cubes)), _top(cubes)], fixedrange=True)
    figure.update_yaxes(scaleanchor="x", constrain="domain")
    figure.update_xaxes(constrain="domain")
    figure.update_layout(legend={"y": 0, "yanchor": "top"})  # a narrow page breaks it into lines
    alt = f"{title}. {' '.join(_told(name, cells) for name, cells in cubes)}"
    return finish(figure, title=title, alt=alt, height=90 + _CUBE * rows, theme=theme)


def _checked(name: str, cells: Any) -> NDArray[np.bool_]:
    found = np.asarray(cells)
    if found.dtype != np.bool_ or found.ndim != 3 or not found.size:
        raise InputError(
            "booleans (samples, channels, positions)",
            f"{found.dtype} of shape {found.shape} for {name}",
            "type: spec.cells(4, 6, 6)",
        )
    return found


def _cell_size(cubes: Sequence[tuple[str, NDArray[np.bool_]]]) -> tuple[float, float]:
    """Width and height of the place that each cube gets, in cells."""
    samples, channels, positions = (max(cells.shape[axis] for _, cells in cubes) for axis in range(3))
    return channels - _BACK[0] * samples + 3.0, positions + _BACK[1] * samples + 3.4


def _top(cubes: Sequence[tuple[str, NDArray[np.bool_]]]) -> float:
    return _BACK[1] * max(cells.shape[0] for _, cells in cubes) + 1.9


def _outlines(
    cells: NDArray[np.bool_], face: Face, shared: bool, at: tuple[float, float]
) -> list[list[tuple[float, float]]]:
    """The quadrilaterals of a face's cells that share the statistic, or do not."""
    seen = {"front": cells[0], "top": cells[:, :, 0], "left": cells[:, 0]}[face]
    found = []
    for row, column in zip(*np.nonzero(seen == shared), strict=True):
        first, then = int(row), int(column)
        ends = [(first, then), (first + 1, then), (first + 1, then + 1), (first, then + 1)]
        points = {
            "front": [(0, c, s) for c, s in ends],
            "top": [(n, c, 0) for n, c in ends],
            "left": [(n, 0, s) for n, s in ends],
        }[face]
        found.append([(at[0] + c + _BACK[0] * n, at[1] - s + _BACK[1] * n) for n, c, s in points])
    return found


def _draw(figure: go.Figure, corners: Sequence[Sequence[tuple[float, float]]], face: Face, *, shared: bool) -> None:
    """All cells of one face and colour as one trace."""
    if not corners:
        return
    x: list[float | None] = []
    y: list[float | None] = []
    for outline in corners:
        closed = [*outline, outline[0]]
        x += [*(point[0] for point in closed), None]
        y += [*(point[1] for point in closed), None]
    shade = _SHADE[face]
    red, green, blue = (int(SERIES[0][place : place + 2], 16) for place in (1, 3, 5))
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red}, {green}, {blue}, {shade})" if shared else f"rgba(128, 128, 128, {0.2 * shade:.3f})",
        line={"width": 1, "color": FAINT},
        name="shares the first cell's statistic" if shared else "has another",
        legendgroup=str(shared),
        showlegend=face == "front" or not any(trace.legendgroup == str(shared) for trace in figure.data),
        hoverinfo="skip",
    )


def _label(figure: go.Figure, name: str, cells: NDArray[np.bool_], at: tuple[float, float]) -> None:
    """Title, first cell and letters of the axes of one cube."""
    samples, channels, positions = cells.shape
    figure.add_scatter(
        x=[at[0] + 0.5],
        y=[at[1] - 0.5],
        mode="markers",
        marker={"size": 5, "color": "#ffffff", "line": {"width": 1, "color": "#1c2733"}},
        name="the first cell",
        legendgroup="first",
        showlegend=not any(trace.legendgroup == "first" for trace in figure.data),
        hoverinfo="skip",
    )
    back = _BACK[0] * samples, _BACK[1] * samples
    for text, x, y, place in (
        (f"<b>{safe(shortened(name, 22))}</b>", at[0] + (channels + back[0]) / 2, at[1] + back[1] + 0.9, {}),
        ("channels", at[0] + channels / 2, at[1] - positions - 0.6, {}),
        ("positions", at[0] + channels + 0.6, at[1] - positions / 2, {"textangle": 90}),
        ("samples", at[0] + back[0] / 2 - 0.55, at[1] + back[1] / 2 - positions - 0.45, {"textangle": 48}),
    ):
        size = {} if text.startswith("<b>") else {"font": {"size": 10}}
        figure.add_annotation(text=text, x=x, y=y, showarrow=False, **place, **size)


def _told(name: str, cells: NDArray[np.bool_]) -> str:
    """One cube in a sentence."""
    reached = [
        f"{int(cells.any(axis=tuple({0, 1, 2} - {axis})).sum())} of {cells.shape[axis]} {word}"
        for axis, word in enumerate(("samples", "channels", "positions"))
    ]
    return f"{name}: {int(cells.sum())} of {cells.size} cells, in {', '.join(reached)}."
