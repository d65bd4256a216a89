"""`ridgeline`: the distribution of one site over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.colors import sample_colorscale

from holdfast.core.protocols import History
from holdfast.core.site import Site
from holdfast.figures.canvas import blank, finish
from holdfast.figures.theme import FLOOR, SEQUENTIAL, Theme
from holdfast.figures.wording import number, shortened
from holdfast.stats.summary import Summary

MOST_ROWS = 20
OVERLAP = 1.35  # height of the tallest ridge, in rows
COLUMNS = 70  # bins narrower than the axis over this many are joined
TAIL = 0.002  # what is cut off at either side of the axis when the outermost bins are far away


def ridgeline(
    history: History, site: Site, *, rows: int = MOST_ROWS, saturation: float | None = None, theme: Theme = "light"
) -> go.Figure:
    """Ridges of one site's distribution, one for each of up to `rows` steps, drawn from the 64-bin sketches.

    The height of a ridge is density (share per unit of activation), on one scale for all ridges; exact zeros,
    which would be an infinitely high peak, are left out of it and named beside the ridge. The dot is the median,
    the bar reaches from the 5th to the 95th percentile, both to the width of a bin.

    Args:
        history: a run.
        site: with summaries.
        rows: greatest number of ridges; steps between are left out evenly, the first and the last stay.
        saturation: |x| from which the activation is saturated, drawn as two lines.
        theme: `"light"` or `"dark"`.

    Returns:
        A figure with one trace a ridge and one for the medians.
    """
    title = f"Distribution of {shortened(site.label, 40)} ({site.port.replace('_', ' ')}) over time"
    found = [(step, each) for step, each in history.summaries(site) if isinstance(each, Summary)]
    summaries = [(step, each) for step, each in found if each.sketch.count]
    if not summaries:
        reason = "no readings" if not found else "no finite value at any step"
        return blank(title, reason, theme=theme)
    kept = np.unique(np.linspace(0, len(summaries) - 1, min(rows, len(summaries))).round().astype(int))
    shown = [summaries[index] for index in kept]
    low, high = _range([each for _, each in shown])
    curves = [_density(each, low, high) for _, each in shown]
    tallest = max(float(height.max()) for _, height in curves) or 1.0
    figure = go.Figure()
    colours = sample_colorscale(SEQUENTIAL, list(np.linspace(0.22, 0.9, len(shown))))
    # Later ridges lie further up and behind: drawn first.
    for row in range(len(shown) - 1, -1, -1):
        x, height = curves[row]
        figure.add_scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([row + OVERLAP * height / tallest, np.full(len(x), float(row))]),
            fill="toself",
            fillcolor=colours[row].replace("rgb", "rgba").replace(")", ", 0.8)"),
            line={"color": colours[row], "width": 1.1},
            mode="lines",
            hoveron="fills",
            hoverinfo="skip",
            name=f"step {shown[row][0]}",
            showlegend=False,
        )
    _middles(figure, shown, low, high)
    top = len(shown) - 1 + OVERLAP + 0.2
    if saturation is not None:
        figure.add_scatter(
            x=[-saturation, -saturation, None, saturation, saturation],
            y=[-0.3, top, None, -0.3, top],
            mode="lines",
            line={"dash": "dash", "width": 1.2, "color": FLOOR},
            hoverinfo="skip",
            name=f"saturated beyond ±{number(saturation)}",
        )
    figure.update_xaxes(title_text=_axis_title(site, shown, low, high), range=[low, high])
    figure.update_yaxes(
        title_text="optimiser step (height: density)",
        tickvals=list(range(len(shown))),
        ticktext=[str(step) for step, _ in shown],
        range=[-0.3, top],
    )
    return finish(
        figure,
        title=title,
        alt=_alt(title, shown),
        height=max(300, 130 + 26 * len(shown)),
        theme=theme,
    )


def _range(summaries: Sequence[Summary]) -> tuple[float, float]:
    """The axis: from the least low to the greatest high quantile of all ridges, with a little air."""
    low = min(each.sketch.quantile(TAIL) for each in summaries)
    high = max(each.sketch.quantile(1 - TAIL) for each in summaries)
    low = max(low, min(each.extremes.low for each in summaries))
    high = min(high, max(each.extremes.high for each in summaries))
    if not low < high:
        low, high = low - 0.5, high + 0.5
    air = 0.03 * (high - low)
    return low - air, high + air


def _density(summary: Summary, low: float, high: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Polyline of the density over the bins that the axis shows, exact zeros taken out."""
    edges = np.asarray(summary.sketch.edges(summary.sketch.exponent))
    share = np.array(summary.sketch.bins, np.float64) / summary.sketch.count
    # An exact zero is in the bin that begins at zero.
    home = int(np.searchsorted(edges, 0.0))
    share[home] = max(0.0, share[home] - summary.counts.zero_fraction)
    edges, share = _coarse(edges, share, (high - low) / COLUMNS)
    filled = np.flatnonzero(share)
    if not len(filled):  # nothing but zeros
        return np.zeros(2), np.zeros(2)
    kept = slice(filled[0], filled[-1] + 1)
    density = share[kept] / np.diff(edges)[kept]
    # Steps, not a smooth line: what lies inside a bin is not known.
    x = np.repeat(edges[filled[0] : filled[-1] + 2], 2)
    y = np.concatenate([[0.0], np.repeat(density, 2), [0.0]])
    return np.clip(x, low, high), y


def _coarse(
    edges: NDArray[np.float64], share: NDArray[np.float64], width: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Join the narrow bins around zero until each is `width` wide: narrower ones show only their noise.

    Zero stays an edge, so that what a rectifier leaves does not leak below it.
    """
    kept = [0]
    home = int(np.searchsorted(edges, 0.0))
    for index in range(1, len(edges) - 1):
        far_enough = edges[index] - edges[kept[-1]] >= width
        if index == home or (far_enough and (index > home or edges[home] - edges[index] >= width)):
            kept.append(index)
    kept.append(len(edges) - 1)
    return edges[kept], np.add.reduceat(share, kept[:-1])


def _middles(figure: go.Figure, shown: Sequence[tuple[int, Summary]], low: float, high: float) -> None:
    """Median and 5th to 95th percentile of each ridge, with its words."""
    quantiles = np.array([[each.sketch.quantile(q) for q in (0.05, 0.5, 0.95)] for _, each in shown])
    clipped = np.clip(quantiles, low, high)
    figure.add_scatter(
        x=clipped[:, 1],
        y=list(range(len(shown))),
        mode="markers",
        marker={"size": 6, "color": "#ffffff", "line": {"width": 1.4, "color": "#33404d"}},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": clipped[:, 2] - clipped[:, 1],
            "arrayminus": clipped[:, 1] - clipped[:, 0],
            "thickness": 3,
            "width": 0,
            "color": FLOOR,
        },
        customdata=[_words(step, each, row) for (step, each), row in zip(shown, quantiles, strict=True)],
        hovertemplate="%{customdata}<extra></extra>",
        name="median, 5th to 95th percentile",
        showlegend=True,
    )


def _words(step: int, summary: Summary, quantiles: NDArray[np.float64]) -> str:
    counts = summary.counts
    lines = [
        f"<b>step {step}</b>",
        f"median {number(quantiles[1])}, 5 % to 95 %: {number(quantiles[0])} to {number(quantiles[2])}",
        f"mean {number(summary.moments.mean)}, SD {number(summary.moments.sd)}",
        f"least {number(summary.extremes.low)}, greatest {number(summary.extremes.high)}",
        f"n = {counts.total} elements",
    ]
    if counts.zeros:
        lines.append(f"exact zeros {100 * counts.zero_fraction:.1f} % (not in the ridge)")
    if counts.nonfinite:
        lines.append(f"<b>{counts.nonfinite} not finite</b> (not in the ridge)")
    return "<br>".join(lines)


def _axis_title(site: Site, shown: Sequence[tuple[int, Summary]], low: float, high: float) -> str:
    """What is drawn, its unit, and what the axis leaves out."""
    title = f"{'gradient' if 'grad' in site.port else 'activation'} (its own unit)"
    cut = any(each.extremes.low < low or each.extremes.high > high for _, each in shown)
    return f"{title}<br><span style='font-size: 0.9em'>rare values lie beyond the axis</span>" if cut else title


def _alt(title: str, shown: Sequence[tuple[int, Summary]]) -> str:
    (first_step, first), (last_step, last) = shown[0], shown[-1]
    return (
        f"{title}: {len(shown)} ridges. Median {number(first.sketch.quantile(0.5))} and SD {number(first.moments.sd)}"
        f" at step {first_step}; median {number(last.sketch.quantile(0.5))} and SD {number(last.moments.sd)} at step"
        f" {last_step}; {100 * last.counts.zero_fraction:.0f} % exact zeros at the end."
    )
