"""`attribution`: whose update moved each layer's input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Port, Site
from holdfast.figures.canvas import blank, finish, height_for
from holdfast.figures.depth import MOST_LABELS, by_depth, layer_axis
from holdfast.figures.dots import add_dots, shown_values
from holdfast.figures.scale import apply_log
from holdfast.figures.theme import FAINT, NOISE, SERIES, Theme
from holdfast.figures.wording import number, safe, shortened, unique
from holdfast.measures.attribution import INTERACTION, Attribution, Cell, attributions

# Each cell carries its figures, as in the heat map over time.
CELLS = 15_000

# Nothing is the page itself, light or dark, so that grey can mean "within noise"; the ends are the first two of SERIES.
_DIVERGING = [
    [0.0, "rgba(213, 96, 26, 1)"],
    [0.5, "rgba(213, 96, 26, 0)"],
    [0.5, "rgba(42, 134, 201, 0)"],
    [1.0, "rgba(42, 134, 201, 1)"],
]


class _Shown(NamedTuple):
    """One attribution, cut to what is drawn: a row of cells a site, one of them all together."""

    sites: list[Site]
    columns: list[str]
    cells: dict[tuple[int, int], Cell]
    together: list[Cell]
    left_out: int


def attribution(
    history: History, *, port: Port = "input", stream: str = "net", step: int | None = None, theme: Theme = "light"
) -> go.Figure:
    """Heat map of one update taken apart, site × layer, beside the drift of each site by all updates together.

    The colour is the part of the site's joint drift that a layer's update caused alone: blue with it, orange against
    it, full at the whole of it. The parts of a row and its interaction add up to 1. Grey is within noise; blank is a
    layer that does not feed the site.

    Args:
        history: a run.
        port: of the sites shown, `"input"` or `"output"`.
        stream: the model's name.
        step: which update; `None` takes the last that was taken apart.
        theme: `"light"` or `"dark"`.

    Returns:
        A figure with the traces "share" and, where there are any, "within noise"; beside them one dot a site.
    """
    title = f"Whose update moved each layer's {port.replace('_', ' ')}"
    found = [each for each in attributions(history, stream) if step in (None, each.effect.step)]
    shown = _shown(history, found[-1], port, stream) if found else None
    if shown is None or not shown.sites:
        return blank(title, "no attribution was taken", theme=theme)
    taken = found[-1].effect
    title = f"{title} (update of step {taken.step})"
    figure = make_subplots(cols=2, shared_yaxes=True, column_widths=[0.76, 0.24], horizontal_spacing=0.03)
    labels = layer_axis(figure, shown.sites)
    _draw(figure, shown, list(labels.values()), str(taken.unit))
    _draw_together(figure, shown, labels, Reading("", Site("", port), taken.step, 0.0, taken.unit, taken.n))
    return finish(
        figure,
        title=title,
        alt=_alt(title, shown, str(taken.unit)),
        height=height_for(len(shown.sites), row=19, frame=210),
        theme=theme,
    )


def _shown(history: History, found: Attribution, port: Port, stream: str) -> _Shown:
    """Layers whose update moved nothing are left out, and the weakest where there are too many."""
    parsed = [Site.parse(row) for row in found.effect.rows]
    sites = by_depth(history, [site for site in parsed if site.port == port], stream)
    rows = [found.cells(site) or [] for site in sites]
    *alone, _, interaction = range(len(found.effect.columns))
    strength = {
        column: max((_share(row[column], row[-2]) or 0.0 for row in rows), key=abs, default=0.0)
        for column in alone
        if any(row[column].drift > 0 or math.isnan(row[column].drift) for row in rows)
    }
    room = max(1, CELLS // max(1, len(rows)) - 1)
    kept = sorted(sorted(strength, key=lambda column: -abs(strength[column]))[:room])
    cells = {
        (index, place): row[column]
        for index, row in enumerate(rows)
        for place, column in enumerate([*kept, interaction])
        if row[column].drift != 0 or row[column].floor != 0
    }
    columns = [*(found.effect.columns[column] for column in kept), INTERACTION]
    return _Shown(sites, columns, cells, [row[-2] for row in rows], len(strength) - len(kept))


def _share(cell: Cell, together: Cell) -> float | None:
    """The part of the joint drift, where both are above noise."""
    return cell.effect / together.effect if cell.above_noise and together.above_noise else None


def _draw(figure: go.Figure, shown: _Shown, names: Sequence[str], unit: str) -> None:
    across = unique(shown.columns)
    shape = len(shown.sites), len(shown.columns)
    shares, noise = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    figures = np.full((*shape, 5), np.nan, np.float32)
    for place, cell in shown.cells.items():
        together = shown.together[place[0]]
        share = _share(cell, together)
        if share is not None:
            shares[place] = share
        elif math.isfinite(cell.drift):
            noise[place] = 1.0
        figures[place] = (math.nan if share is None else share, *cell, together.drift)
    words = (
        "<b>%{y}</b>, by the update of <b>%{x}</b><br>{remark}"
        f"%{{customdata[1]:.3g}} of %{{customdata[4]:.3g}} {safe(unit)}<br>"
        f"alone it moves the site by %{{customdata[2]:.3g}} {safe(unit)}<br>noise floor %{{customdata[3]:.3g}}"
        "<extra></extra>"
    )
    common = {"x": across, "y": list(names), "customdata": figures, "hoverongaps": False, "xgap": 1, "ygap": 1}
    figure.add_heatmap(
        z=shares,
        zmin=-1,
        zmax=1,
        colorscale=_DIVERGING,
        name="share",
        showscale=bool(np.isfinite(shares).any()),
        colorbar={
            "title": {"text": "part of the joint drift", "side": "right", "font": {"size": 12}},
            "tickfont": {"size": 11},
            "tickvals": [-1, -0.5, 0, 0.5, 1],
            "ticktext": ["≤ −1", "−0.5", "0", "0.5", "≥ 1"],
            "thickness": 14,
            "outlinewidth": 1,
            "outlinecolor": FAINT,
        },
        hovertemplate=words.replace("{remark}", "%{customdata[0]:.0%} of the joint drift: "),
        row=1,
        col=1,
        **common,
    )
    if np.isfinite(noise).any():
        figure.add_heatmap(
            z=noise,
            colorscale=[[0, NOISE], [1, NOISE]],
            showscale=False,
            name="within noise",
            hovertemplate=words.replace("{remark}", "<b>within noise</b>: "),
            row=1,
            col=1,
            **common,
        )
        # A heat map has no entry in the legend; this point without a place stands for it.
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="markers",
            marker={"symbol": "square", "size": 12, "color": NOISE},
            name="within noise (below the noise floor)",
            hoverinfo="skip",
            showlegend=True,
        )
    _across(figure, shown, across)


def _across(figure: go.Figure, shown: _Shown, across: Sequence[str]) -> None:
    """The axis of the layers whose updates are told apart."""
    stride = math.ceil(len(across) / MOST_LABELS)
    ticks = sorted({*range(0, len(across), stride), len(across) - 1})
    title = "update of the layer" + (f" ({shown.left_out} weaker ones left out)" if shown.left_out else "")
    figure.update_xaxes(
        col=1,
        type="category",
        categoryorder="array",
        categoryarray=list(across),
        range=[-0.5, len(across) - 0.5],
        tickvals=[across[tick] for tick in ticks],
        ticktext=[safe(shortened(shown.columns[tick], 18)) for tick in ticks],
        title_text=title,
        showgrid=False,
    )
    figure.update_yaxes(showgrid=False, col=1)
    # What no single update explains stands apart.
    figure.add_vline(x=len(across) - 1.5, line={"width": 1.5, "color": FAINT}, row=1, col=1)


def _draw_together(figure: go.Figure, shown: _Shown, labels: Mapping[Site, str], like: Reading) -> None:
    """The joint drift of each site: what the shares are parts of."""
    readings = [
        (labels[site], Reading("", site, like.step, cell.drift, like.unit, like.n, cell.floor))
        for site, cell in zip(shown.sites, shown.together, strict=True)
        if math.isfinite(cell.drift)
    ]
    figure.update_xaxes(title_text=f"joint drift ({like.unit})", col=2)
    if readings:
        add_dots(figure, readings, name="all updates together", column=2, colour=SERIES[0], floors="named")
        apply_log(figure, shown_values(each for _, each in readings), col=2)


def _alt(title: str, shown: _Shown, unit: str) -> str:
    text = f"{title}: {len(shown.sites)} sites by {len(shown.columns) - 1} layers."
    moved = [index for index, cell in enumerate(shown.together) if cell.above_noise]
    if not moved:
        return f"{text} Every site lies within noise."
    most = max(moved, key=lambda index: shown.together[index].drift)
    text += f" The most moved is {shown.sites[most].label} ({number(shown.together[most].drift)} {unit})"
    shares = {
        shown.columns[column]: share
        for (row, column), cell in shown.cells.items()
        if row == most and (share := _share(cell, shown.together[row])) is not None
    }
    for name in sorted(shares, key=lambda each: -shares[each])[:1]:
        text += f", {100 * shares[name]:.0f} % of it by {name if name == INTERACTION else f'the update of {name}'}"
    return f"{text}. {len(shown.sites) - len(moved)} of {len(shown.sites)} sites lie within noise."
