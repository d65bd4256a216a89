"""`loss`: loss and gradient norm at every step, with what was found and what happened."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from holdfast.core.event import Event
from holdfast.core.finding import Finding
from holdfast.core.protocols import History
from holdfast.figures.canvas import blank, finish
from holdfast.figures.scale import log_axis
from holdfast.figures.theme import ALERT, FAINT, SEVERITY_COLOURS, SEVERITY_SYMBOLS, Theme
from holdfast.figures.wording import number, safe, shortened

# A screen is about 2,000 pixels wide: least and greatest of each of 2,000 stretches lose nothing to the eye.
POINTS = 4_000
SHOWN_EVENTS = ("nonfinite", "alarm", "skipped-step", "monitor-error", "model-changed")
MOST_EVENTS = 500


def loss(
    history: History, findings: Sequence[Finding] = (), *, stream: str = "net", theme: Theme = "light"
) -> go.Figure:
    """Loss and global gradient norm over steps; findings and events in a strip above them.

    Both are exact figures of one batch: no interval belongs to them, so the raw series is drawn beside its
    running median. A value that is not finite is a cross at the top of its panel.

    Args:
        history: a run.
        findings: to mark at the step of their strongest evidence, by rank.
        stream: the model's name.
        theme: `"light"` or `"dark"`.

    Returns:
        A figure with the panels "found", loss (unit of the user's loss) and gradient norm (L2).
    """
    title = "Loss and gradient norm at every step"
    series = {name: history.values(name, stream) for name in ("loss", "gradient-norm")}
    series = {name: pair for name, pair in series.items() if len(pair[0])}
    events = [each for each in history.events() if each.kind in SHOWN_EVENTS][:MOST_EVENTS]
    if not series:
        return blank(title, "no readings", theme=theme)
    marks = bool(events or any(each.evidence for each in findings))
    heights = ([0.12] if marks else []) + [0.88 / len(series)] * len(series)
    figure = make_subplots(rows=len(heights), shared_xaxes=True, row_heights=heights, vertical_spacing=0.06)
    words = []
    for row, (name, (steps, values)) in enumerate(series.items(), start=1 + marks):
        words.append(_panel(figure, row, name, steps, values))
    if marks:
        _mark(figure, findings, events)
    figure.update_xaxes(title_text="optimiser step", row=len(heights))
    alt = f"{title}. {' '.join(words)} {len(findings)} findings and {len(events)} events are marked."
    return finish(figure, title=title, alt=alt, height=150 + 170 * len(series) + 60 * marks, theme=theme)


def thinned(steps: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A long series by the least and the greatest value of each stretch, so that no spike is lost.

    Args:
        steps: rising.
        values: finite.

    Returns:
        At most `POINTS` of the given points, in order; short series unchanged.
    """
    if len(steps) <= POINTS:
        return steps, values
    keep = []
    for stretch in np.array_split(np.arange(len(steps)), POINTS // 2):
        keep += sorted({int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])})
    return steps[keep], values[keep]


def running_median(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Median of the `width` values around each; fewer at the ends.

    Args:
        values: finite.
        width: odd.

    Returns:
        As many values.
    """
    half = width // 2
    padded = np.pad(values, half, constant_values=np.nan)
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


def _panel(figure: go.Figure, row: int, name: str, steps: NDArray[np.int64], values: NDArray[np.float64]) -> str:
    """One series: raw behind, median before, crosses where it is not finite. Returns its words."""
    words, unit = {"loss": ("loss", "loss"), "gradient-norm": ("gradient norm", "L2 norm")}[name]
    finite = np.isfinite(values)
    good_steps, good = steps[finite], values[finite]
    width = 2 * (len(good) // 100) + 1  # 2 % of the run
    smooth = width >= 5
    if smooth:  # first, so that it takes the theme's colour; drawn above the raw series all the same
        x, y = thinned(good_steps, running_median(good, width))
        figure.add_scatter(
            x=x,
            y=y,
            row=row,
            col=1,
            mode="lines",
            line={"width": 2.2},
            zorder=2,
            name=f"{words}, median of {width} steps",
            hovertemplate=f"step %{{x}}<br>median of {width} steps %{{y:.4g}}<extra></extra>",
        )
    x, y = thinned(good_steps, good)
    figure.add_scatter(
        x=x,
        y=y,
        row=row,
        col=1,
        mode="lines" if len(x) > 1 else "markers",
        line={"width": 1, "color": FAINT} if smooth else {"width": 1.6},
        zorder=1,
        name=f"{words}, each step",
        hovertemplate=f"step %{{x}}<br>{words} %{{y:.4g}} (one batch)<extra></extra>",
    )
    logarithmic = bool(len(good) and good.min() > 0 and good.max() / good.min() > 20)
    figure.update_yaxes(
        row=row,
        **(log_axis(good) if logarithmic else {}),
        title_text=f"{words} ({unit})" if unit != words else f"{words} (its own unit)",
    )
    if not finite.all():
        top = float(good.max()) if len(good) else 1.0
        figure.add_scatter(
            x=steps[~finite][:POINTS],
            y=np.full(min(int((~finite).sum()), POINTS), top),
            row=row,
            col=1,
            mode="markers",
            marker={"symbol": "x", "size": 9, "color": ALERT},
            name=f"{words} not finite",
            text=[str(value) for value in values[~finite][:POINTS]],
            hovertemplate=f"step %{{x}}<br>{words} is %{{text}}<extra></extra>",
        )
    if not len(good):
        return f"The {words} was never finite."
    return (
        f"The {words} goes from {number(float(good[0]))} at step {good_steps[0]} to {number(float(good[-1]))} at step"
        f" {good_steps[-1]}{'' if finite.all() else f', and was not finite at {int((~finite).sum())} steps'}."
    )


def _mark(figure: go.Figure, findings: Sequence[Finding], events: Sequence[Event]) -> None:
    """The strip on top: findings by rank at their strongest evidence, events below them."""
    at: dict[int, list[tuple[int, Finding]]] = {}
    for place, finding in enumerate(findings, start=1):
        if finding.evidence:
            at.setdefault(finding.evidence[0].step, []).append((finding.rank or place, finding))
    for severity in ("critical", "warning", "info"):
        steps = [step for step, each in sorted(at.items()) if _worst(each) == severity]
        if steps:
            figure.add_scatter(
                x=steps,
                y=["findings"] * len(steps),
                row=1,
                col=1,
                mode="markers+text",
                marker={"symbol": SEVERITY_SYMBOLS[severity], "size": 11, "color": SEVERITY_COLOURS[severity]},
                text=[", ".join(str(rank) for rank, _ in at[step]) for step in steps],
                textposition="middle left",
                textfont={"size": 11},
                customdata=["<br>".join(_line(rank, each) for rank, each in at[step]) for step in steps],
                hovertemplate="evidence at step %{x}<br>%{customdata}<extra></extra>",
                name=f"finding: {severity}",
            )
    if events:
        figure.add_scatter(
            x=[each.step for each in events],
            y=["events"] * len(events),
            row=1,
            col=1,
            mode="markers",
            marker={"symbol": "line-ns", "size": 10, "line": {"width": 2, "color": ALERT}, "color": ALERT},
            customdata=[f"{each.kind}: {safe(shortened(each.message, 90))}" for each in events],
            hovertemplate="step %{x}<br>%{customdata}<extra></extra>",
            name="event",
        )
    rows = (["events"] if events else []) + (["findings"] if at else [])
    figure.update_yaxes(type="category", categoryarray=rows, range=[-0.6, len(rows) - 0.4], showgrid=False, row=1)
    for step in sorted(at)[:20]:
        figure.add_vline(x=step, line={"width": 1, "dash": "dot", "color": FAINT}, layer="below")


def _worst(findings: Sequence[tuple[int, Finding]]) -> str:
    return min((each.severity for _, each in findings), key=("critical", "warning", "info").index)


def _line(rank: int, finding: Finding) -> str:
    return f"{rank}. {safe(finding.rule)} ({finding.severity}): {safe(shortened(finding.message, 90))}"
