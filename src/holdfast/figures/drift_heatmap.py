"""`drift_heatmap`: where and when the layers' distributions moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Phase, Port, Site
from holdfast.figures.canvas import blank, finish, height_for
from holdfast.figures.depth import by_depth, layer_axis
from holdfast.figures.scale import colour_ticks
from holdfast.figures.theme import ALERT, NOISE, SEQUENTIAL, Theme
from holdfast.figures.wording import number, safe

# Each cell carries its figures: 15,000 cells are about 0.8 MB of page. Wide runs are thinned in time, never in depth.
CELLS = 15_000
MOST_COLUMNS = 400
LEAST_COLUMNS = 15

_Grid = dict[tuple[int, int], Reading]


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
    figure = _draw(grid, sites, steps, readings[0].unit)
    figure.update_xaxes(title_text="optimiser step" + (f" (every {stride}th observed)" if stride > 1 else ""))
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


def _grid(readings: Sequence[Reading], sites: Sequence[Site], steps: Sequence[int]) -> _Grid:
    row = {site: index for index, site in enumerate(sites)}
    column = {step: index for index, step in enumerate(steps)}
    return {(row[each.site], column[each.step]): each for each in readings if each.step in column}


def _details(grid: _Grid, shape: tuple[int, int], unit: str, remark: str) -> dict[str, object]:
    """What the hover box of a cell says: the cells' own figures packed as numbers, since words would take megabytes.

    What no reading has is not mentioned, what all share is said in the template, and the rest is one number a cell.
    """
    figures = {
        "value": f"%{{value:.3g}} {safe(unit)}",
        "low": "95\u00a0% interval %{low:.3g} to %{high:.3g}",
        "high": "",
        "floor": "noise floor %{floor:.3g}",
        "n": "n = %{n:.0f}",
        "lag": "over %{lag:.0f} step(s)",
    }
    columns = np.full((*shape, len(figures)), np.nan, np.float32)
    for place, each in grid.items():
        low, high = each.interval or (math.nan, math.nan)
        floor = math.nan if each.noise_floor is None else each.noise_floor
        columns[place] = each.value, low, high, floor, each.n, math.nan if each.lag is None else each.lag
    lines = ["<b>%{y}</b>, step %{x}"]
    kept = []
    for index, name in enumerate(figures):
        known = columns[..., index][np.isfinite(columns[..., index])]
        if name in ("n", "lag") and len(known) and (known == known[0]).all():
            lines.append(figures[name].replace(f"%{{{name}:.0f}}", f"{known[0]:.0f}"))
        elif len(known):
            kept.append(index)
            lines.append(figures[name])
    text = "<br>".join(filter(None, [*lines, remark and f"<b>{remark}</b>"]))
    for slot, index in enumerate(kept):
        text = text.replace(f"%{{{list(figures)[index]}:", f"%{{customdata[{slot}]:")
    return {"customdata": columns[..., kept], "hovertemplate": text + "<extra></extra>"}


def _draw(grid: _Grid, sites: Sequence[Site], steps: Sequence[int], unit: str) -> go.Figure:
    figure = go.Figure()
    names = layer_axis(figure, sites)
    common = {"x": steps, "y": list(names.values()), "hoverongaps": False}
    shape = len(sites), len(steps)
    above = {place: each for place, each in grid.items() if each.above_noise}
    positive = [each.value for each in above.values() if each.value > 0]
    lowest, highest = math.log10(min(positive, default=0.1)), math.log10(max(positive, default=1.0))
    low = math.floor(lowest * 2) / 2
    high = max(math.ceil(highest * 2) / 2, low + 0.5)
    logs = np.full(shape, np.nan, np.float32)
    for place, each in above.items():
        # A drift of exactly zero that has no floor lies at the lower end of the scale, not off it.
        logs[place] = math.log10(each.value) if each.value > 0 else low
    figure.add_heatmap(
        z=logs,
        zmin=low,
        zmax=high,
        colorscale=SEQUENTIAL,
        showscale=bool(above),
        name="drift",
        colorbar={
            "title": {"text": safe(unit), "side": "right", "font": {"size": 12}},
            "tickfont": {"size": 11},
            **colour_ticks(low, high),
            "thickness": 14,
            "outlinewidth": 0,
        },
        **common,
        **_details(above, shape, unit, ""),
    )
    noise = {place: each for place, each in grid.items() if math.isfinite(each.value) and not each.above_noise}
    broken = {place: each for place, each in grid.items() if not math.isfinite(each.value)}
    for name, part, colour in (("within noise", noise, NOISE), ("not finite", broken, ALERT)):
        if not part:
            continue
        mask = np.full(shape, np.nan, np.float32)
        for place in part:
            mask[place] = 1.0
        figure.add_heatmap(
            z=mask,
            colorscale=[[0, colour], [1, colour]],
            showscale=False,
            name=name,
            **common,
            **_details(part, shape, unit, name),
        )
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
    figure.update_yaxes(showgrid=False)
    return figure


def _alt(title: str, grid: dict[tuple[int, int], Reading], sites: Sequence[Site], steps: Sequence[int]) -> str:
    shown = list(grid.values())
    finite = [each for each in shown if each.above_noise]
    text = f"{title}: {len(sites)} layers by {len(steps)} steps, {steps[0]} to {steps[-1]}."
    if finite:
        worst = max(finite, key=lambda each: each.value)
        text += f" The greatest is {number(worst.value)} {worst.unit} at {worst.site.label}, step {worst.step}."
    within = sum(math.isfinite(each.value) and not each.above_noise for each in shown)
    return text + f" {within} of {len(shown)} readings lie within noise."
