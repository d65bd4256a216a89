"""`proof_curves`: the arms of a proof, step by step, and their paired differences, seed by seed."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from holdfast.clinic.proof import TREATED, UNTREATED, Arm, Comparison, Proof, interval_of
from holdfast.figures.canvas import blank, finish
from holdfast.figures.loss import running_median, thinned
from holdfast.figures.scale import log_axis
from holdfast.figures.theme import FAINT, FLOOR, SERIES, Theme
from holdfast.figures.wording import number, safe

_COLOURS = {UNTREATED: SERIES[1], TREATED: SERIES[0]}
_DASHES = ("dot", "dash")


def proof_curves(proof: Proof, *, theme: Theme = "light") -> go.Figure:
    """Training loss of each arm, and what the treatment changed on the eval batches.

    Left: mean over the seeds of the loss at each step, smoothed by a running median over 5 % of the run, with the band
    of Student's 95 % interval of that mean (untreated and treated; the rivals as lines). Right: the paired differences
    of the deciding outcome, one open mark a seed, with their mean and its interval.

    Args:
        proof: of a treatment.
        theme: `"light"` or `"dark"`.

    Returns:
        A figure with two panels; one that says so when no training had a finite loss.
    """
    title = f"Proof: {proof.treatment}, {proof.verdict}"
    curves = {arm.name: curve for arm in proof.arms if (curve := _curve(arm)) is not None}
    if not curves:
        return blank(title, "no training had a finite loss", theme=theme)
    figure = make_subplots(cols=2, column_widths=[0.62, 0.38], horizontal_spacing=0.12)
    rivals = [name for name in curves if name not in _COLOURS]
    for name, (steps, mean, low, high) in curves.items():
        colour = _COLOURS.get(name, FAINT)
        dash = _DASHES[rivals.index(name) % 2] if name in rivals else "solid"
        if name not in rivals and len(proof.arm(name).trials) > 1:
            _band(figure, name, steps, low, high, colour)
        figure.add_scatter(
            x=steps,
            y=mean,
            row=1,
            col=1,
            mode="lines",
            name=name,
            line={"color": colour, "width": 2.2 if name not in rivals else 1.4, "dash": dash},
            hovertemplate=f"step %{{x}}<br>{safe(name)} %{{y:.4g}}<extra></extra>",
        )
    values = np.concatenate([mean for _, mean, _, _ in curves.values()])
    spread = bool(values.min() > 0 and values.max() / values.min() > 20)
    figure.update_xaxes(title_text="step (of the proof's trainings)", row=1, col=1)
    figure.update_yaxes(**(log_axis(values) if spread else {}), title_text="training loss (its own unit)", row=1, col=1)
    decisive = [each for each in proof.comparisons if each.outcome == proof.primary]
    for place, comparison in enumerate(decisive):
        _differences(figure, comparison, shown=place == 0)
    figure.add_vline(x=0, line={"dash": "dash", "width": 1.2, "color": FLOOR}, row=1, col=2)
    figure.update_xaxes(title_text=f"{safe(proof.primary)}: treated − other arm", row=1, col=2)
    figure.update_yaxes(autorange="reversed", row=1, col=2)
    return finish(figure, title=title, alt=f"{title}. {proof.sentence}.", height=360, theme=theme)


def _curve(
    arm: Arm,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
    """Steps, mean over the seeds, lower and upper end of its interval, over the steps that every seed reached."""
    length = min((len(each.losses) for each in arm.trials), default=0)
    series = np.array([each.losses[:length] for each in arm.trials], np.float64)
    finite = np.isfinite(series).all(0) if length else np.zeros(0, bool)
    if not finite.any():
        return None
    series = series[:, finite]
    width = 2 * (series.shape[1] // 40) + 1
    smooth = np.stack([running_median(row, width) for row in series])
    steps = np.flatnonzero(finite) + 1
    ends = [interval_of(column.tolist(), 0.05) for column in smooth.T]
    mean = np.array([each[0] for each in ends])
    low, high = (np.array([each[side] for each in ends]) for side in (1, 2))
    keep, mean = thinned(steps, mean)
    at = np.searchsorted(steps, keep)
    return keep, mean, low[at], high[at]


def _band(
    figure: go.Figure,
    name: str,
    steps: NDArray[np.int64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    colour: str,
) -> None:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    figure.add_scatter(
        x=np.concatenate([steps, steps[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        row=1,
        col=1,
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red}, {green}, {blue}, 0.18)",
        line={"width": 0},
        name=f"{name}, 95 % interval of the mean over seeds",
        showlegend=False,
        hoverinfo="skip",
    )


def _differences(figure: go.Figure, comparison: Comparison, *, shown: bool) -> None:
    """One row: the seeds, and the mean with its interval where it is finite."""
    row = f"against<br>{safe(comparison.against)}"
    finite = [each for each in comparison.differences if math.isfinite(each)]
    figure.add_scatter(
        x=finite,
        y=[row] * len(finite),
        row=1,
        col=2,
        mode="markers",
        marker={"symbol": "circle-open", "size": 8, "color": FLOOR},
        name="one seed",
        showlegend=shown,
        hovertemplate=f"{safe(comparison.outcome)} %{{x:+.4g}} (one seed)<extra></extra>",
    )
    low, high = comparison.interval
    if not (math.isfinite(comparison.mean) and math.isfinite(low) and math.isfinite(high)):
        return
    level = 100 * (1 - comparison.alpha)
    figure.add_scatter(
        x=[comparison.mean],
        y=[row],
        row=1,
        col=2,
        mode="markers",
        marker={"size": 10, "color": SERIES[0]},
        error_x={"array": [high - comparison.mean], "arrayminus": [comparison.mean - low], "thickness": 2},
        name=f"mean, {level:.3g} % interval",
        showlegend=shown,
        hovertemplate=f"{safe(comparison.outcome)} {number(comparison.mean)}, {level:.3g} % interval {number(low)} to "
        f"{number(high)}, n = {len(comparison.differences)} seeds<extra></extra>",
    )
