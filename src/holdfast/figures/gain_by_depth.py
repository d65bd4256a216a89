"""`gain_by_depth`: what each layer does to the gradient and to the drift that pass through it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.figures.canvas import blank, finish, height_for
from holdfast.figures.depth import by_depth, first_and_last
from holdfast.figures.dots import add_dots
from holdfast.figures.theme import FLOOR, Theme
from holdfast.figures.wording import number, tick_labels

_PANELS = (
    ("backward-gain", "Backward gain", "gradient entering ÷ leaving the layer (ratio)"),
    ("drift-gain", "Drift gain", "output drift ÷ input drift (ratio)"),
)


def gain_by_depth(history: History, *, stream: str = "net", theme: Theme = "light") -> go.Figure:
    """Backward gain and drift gain of each layer, in the order of execution, on logarithmic axes.

    Beyond 1 a layer enlarges what passes through it: gradients explode (or vanish, below 1) when the gains of many
    layers multiply. Full dots are the latest readings with their intervals, open ones the first.

    Args:
        history: a run.
        stream: the model's name.
        theme: `"light"` or `"dark"`.

    Returns:
        A figure with one panel a gain; a gain without readings says so in its panel.
    """
    title = "Gain of each layer: gradients backward, drift forward"
    ends: dict[str, dict[Site, tuple[Reading, Reading]]] = {}
    for measure, _, _ in _PANELS:
        readings = [
            each
            for each in history.readings(measure)
            if each.site.stream == stream and each.site.phase == "train" and each.lag in (None, 1)
        ]
        ends[measure] = first_and_last(readings)
    if not any(ends.values()):
        return blank(title, "no readings", theme=theme)
    modules = [site.at(port="input", phase="train", leaf="") for each in ends.values() for site in each]
    layers = by_depth(history, dict.fromkeys(modules), stream)
    labels = dict(zip(layers, tick_labels(site.label for site in layers), strict=True))
    figure = make_subplots(
        cols=2, shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=[head for _, head, _ in _PANELS]
    )
    for column, (measure, name, axis) in enumerate(_PANELS, start=1):
        _panel(figure, column, name, axis, ends[measure], labels)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=list(labels.values())[::-1])
    figure.update_yaxes(range=[-0.6, len(labels) - 0.4])
    figure.update_yaxes(title_text="layer, in order of execution", col=1)
    return finish(
        figure,
        title=title,
        alt=f"{title}. {_alt(ends)}",
        height=height_for(len(labels), frame=170),
        theme=theme,
    )


def _panel(
    figure: go.Figure,
    column: int,
    name: str,
    axis: str,
    ends: Mapping[Site, tuple[Reading, Reading]],
    labels: Mapping[Site, str],
) -> None:
    figure.update_xaxes(title_text=axis, type="log", col=column)
    if not ends:
        # `x domain` is the panel's own breadth, whatever its axis says.
        suffix = "" if column == 1 else str(column)
        figure.add_annotation(
            text="no readings", x=0.5, y=0.5, xref=f"x{suffix} domain", yref=f"y{suffix} domain", showarrow=False
        )
        figure.update_xaxes(showticklabels=False, col=column)
        return
    at = {site: labels[site.at(port="input", phase="train", leaf="")] for site in ends}
    add_dots(figure, [(at[site], last) for site, (_, last) in ends.items()], name=name, column=column)
    earlier = [(at[site], first) for site, (first, last) in ends.items() if first.step < last.step]
    if earlier:
        add_dots(figure, earlier, name=f"{name}, first reading", column=column, faint=True)
    figure.add_vline(x=1, line={"dash": "dash", "width": 1.2, "color": FLOOR}, col=column, row=1)


def _alt(ends: Mapping[str, Mapping[Site, tuple[Reading, Reading]]]) -> str:
    words: list[str] = []
    for measure, name, _ in _PANELS:
        latest: Sequence[Reading] = [last for _, last in ends[measure].values() if last.value > 0]
        usable = [each.value for each in latest if math.isfinite(each.value)]
        if usable:
            middle = math.exp(sum(map(math.log, usable)) / len(usable))
            words.append(
                f"{name}: {len(usable)} layers, {number(min(usable))} to {number(max(usable))},"
                f" geometric mean {number(middle)}."
            )
        else:
            words.append(f"{name}: no readings.")
    return " ".join(words)
