"""`drift_heatmap`: where and when the layers' distributions moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Phase, Port, Site
from holdfast.figures.canvas import blank, finish, height_for
from holdfast.figures.depth import by_depth
from holdfast.figures.theme import ALERT, NOISE, SEQUENTIAL, Theme
from holdfast.figures.wording import described, number, safe, shortened, tick_labels

# Each cell carries its words: 30,000 cells are about 3 MB of page. Wide runs are thinned in time, never in depth.
CELLS = 30_000
MOST_COLUMNS = 400
LEAST_COLUMNS = 30


def drift_heatmap(
    history: History,
    *,
    measure: str = "parameter-drift",
    lag: int | None = 1,
    port: Port = "input",
    phase: Phase = "train",
    stream: str = "net",
    theme: Theme = "light",
) -> go.Figure:
    """Heat map of a drift, layer × step, its colour logarithmic.

    Cells within noise are grey whatever their value, figures that are not finite are red, and a layer without a
    reading at a step is left blank. Layers run from top to bottom in the order of execution.

    Args:
        history: a run.
        measure: a measure of a scale without negative values.
        lag: lag decade, or `None` for readings of every lag.
        port: of the sites shown.
        phase: of the sites shown: `"train"` holds the step probe's readings, `"probe"` the fixed probe's.
        stream: the model's name.
        theme: `"light"` or `"dark"`.

    Returns:
        A figure with the traces "drift", "within noise" and, where there are any, "not finite".
    """
    title = f"{measure.replace('-', ' ').capitalize()} of each layer's {port.replace('_', ' ')}"
    if lag is not None:
        title += f" over {lag} step{'s' if lag != 1 else ''}"
    readings = [
        each
        for each in history.readings(measure, lag=lag)
        if (each.site.port, each.site.phase, each.site.stream) == (port, phase, stream)
    ]
    if not readings:
        return blank(title, "no readings", theme=theme)
    sites = by_depth(history, dict.fromkeys(each.site for each in readings), stream)
    steps, stride = _columns(readings, len(sites))
    grid = _grid(readings, sites, steps)
    values = np.full((len(sites), len(steps)), np.nan)
    for (row, column), each in grid.items():
        if each.above_noise:
            values[row, column] = each.value
    noise = _where(grid, values.shape, lambda each: math.isfinite(each.value) and not each.above_noise)
    broken = _where(grid, values.shape, lambda each: not math.isfinite(each.value))
    figure = _draw(values, noise, broken, _texts(grid, sites, values.shape), sites, steps, readings[0].unit)
    figure.update_xaxes(title_text="optimiser step" + (f" (every {stride}th observed)" if stride > 1 else ""))
    figure.update_yaxes(title_text="layer, in order of execution")
    return finish(
        figure,
        title=title,
        alt=_alt(title, grid, sites, steps),
        height=height_for(len(sites)),
        theme=theme,
    )


def _columns(readings: Sequence[Reading], rows: int) -> tuple[list[int], int]:
    """The steps shown, and of how many observed steps each is the last one."""
    steps = sorted({each.step for each in readings})
    room = min(MOST_COLUMNS, max(LEAST_COLUMNS, CELLS // rows))
    stride = math.ceil(len(steps) / room)
    return steps[::-1][::stride][::-1], stride


def _grid(readings: Sequence[Reading], sites: Sequence[Site], steps: Sequence[int]) -> dict[tuple[int, int], Reading]:
    row = {site: index for index, site in enumerate(sites)}
    column = {step: index for index, step in enumerate(steps)}
    return {(row[each.site], column[each.step]): each for each in readings if each.step in column}


def _where(
    grid: dict[tuple[int, int], Reading], shape: tuple[int, int], test: Callable[[Reading], bool]
) -> NDArray[np.float64]:
    """1 where a reading passes, NaN elsewhere."""
    mask = np.full(shape, np.nan)
    for place, each in grid.items():
        if test(each):
            mask[place] = 1.0
    return mask


def _texts(grid: dict[tuple[int, int], Reading], sites: Sequence[Site], shape: tuple[int, int]) -> list[list[str]]:
    texts = [[""] * shape[1] for _ in range(shape[0])]
    for (row, column), each in grid.items():
        name = sites[row].label
        full = f"{safe(name)}<br>" if shortened(name) != name else ""
        texts[row][column] = full + described(each)
    return texts


def _draw(
    values: NDArray[np.float64],
    noise: NDArray[np.float64],
    broken: NDArray[np.float64],
    texts: list[list[str]],
    sites: Sequence[Site],
    steps: Sequence[int],
    unit: str,
) -> go.Figure:
    labels = tick_labels(site.label for site in sites)
    common = {
        "x": steps,
        "y": labels,
        "text": texts,
        "hovertemplate": "<b>%{y}</b>, step %{x}<br>%{text}<extra></extra>",
        "hoverongaps": False,
    }
    positive = values[values > 0]
    with np.errstate(divide="ignore"):
        # A drift of exactly zero that has no floor lies at the lower end of the scale, not off it.
        lowest = math.log10(positive.min()) if positive.size else -1.0
        logs = np.maximum(np.log10(values), lowest)
    highest = math.log10(positive.max()) if positive.size else 0.0
    low, high = math.floor(lowest * 2) / 2, max(math.ceil(highest * 2) / 2, math.floor(lowest * 2) / 2 + 0.5)
    ticks = _ticks(low, high)
    figure = go.Figure(
        go.Heatmap(
            z=logs,
            zmin=low,
            zmax=high,
            colorscale=SEQUENTIAL,
            name="drift",
            colorbar={
                "title": {"text": safe(unit), "side": "right"},
                "tickvals": [math.log10(tick) for tick in ticks],
                "ticktext": [number(tick, 1) for tick in ticks],
                "thickness": 14,
                "outlinewidth": 0,
            },
            **common,
        )
    )
    for name, mask, colour in (("within noise", noise, NOISE), ("not finite", broken, ALERT)):
        if name == "not finite" and not np.isfinite(mask).any():
            continue
        figure.add_heatmap(z=mask, colorscale=[[0, colour], [1, colour]], showscale=False, name=name, **common)
        # A heat map has no entry in the legend; this point without a place stands for it.
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"symbol": "square", "size": 12, "color": colour},
            name=f"{name} (below the noise floor)" if name == "within noise" else name,
            hoverinfo="skip",
            showlegend=True,
        )
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=labels[::-1], showgrid=False)
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade where there are few decades, else the decades."""
    leading = (1, 2, 5) if high - low <= 2 else (1, 3) if high - low <= 4 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [each * 10.0**decade for decade in decades for each in leading]
    return [tick for tick in ticks if low - 1e-9 <= math.log10(tick) <= high + 1e-9]


def _alt(title: str, grid: dict[tuple[int, int], Reading], sites: Sequence[Site], steps: Sequence[int]) -> str:
    shown = list(grid.values())
    finite = [each for each in shown if each.above_noise]
    text = f"{title}: {len(sites)} layers by {len(steps)} steps, {steps[0]} to {steps[-1]}."
    if finite:
        worst = max(finite, key=lambda each: each.value)
        text += f" The greatest is {number(worst.value)} {worst.unit} at {worst.site.label}, step {worst.step}."
    within = sum(math.isfinite(each.value) and not each.above_noise for each in shown)
    return text + f" {within} of {len(shown)} readings lie within noise."
