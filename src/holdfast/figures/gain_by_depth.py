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
from holdfast.figures.depth import by_depth, first_and_last, layer_axis
from holdfast.figures.dots import add_dots, shown_values
from holdfast.figures.scale import apply_log
from holdfast.figures.theme import FLOOR, SERIES, Theme
from holdfast.figures.wording import number

_PANELS = (
    ("backward-gain", "backward gain"),
    ("drift-gain", "drift gain"),
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
    for measure, _ in _PANELS:
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
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    labels = layer_axis(figure, layers)
    for column, (measure, name) in enumerate(_PANELS, start=1):
        _panel(figure, column, name, ends[measure], labels)
    return finish(
        figure,
        title=title,
        alt=f"{title}. {_alt(ends)}",
        height=height_for(len(labels), frame=130),
        theme=theme,
    )


def _panel(
    figure: go.Figure,
    column: int,
    name: str,
    ends: Mapping[Site, tuple[Reading, Reading]],
    labels: Mapping[Site, str],
) -> None:
    figure.update_xaxes(title_text=f"{name} (ratio)", col=column)
    if not ends:
        # `x domain` is the panel's own breadth, whatever its axis says.
        suffix = "" if column == 1 else str(column)
        figure.add_annotation(
            text="no readings", x=0.5, y=0.5, xref=f"x{suffix} domain", yref=f"y{suffix} domain", showarrow=False
        )
        figure.update_xaxes(showticklabels=False, col=column)
        return
    at = {site: labels[site.at(port="input", phase="train", leaf="")] for site in ends}
    add_dots(
        figure,
        [(at[site], last) for site, (_, last) in ends.items()],
        name=name,
        column=column,
        colour=SERIES[column - 1],
    )
    earlier = [(at[site], first) for site, (first, last) in ends.items() if first.step < last.step]
    if earlier:
        add_dots(figure, earlier, name=f"{name}, first reading", column=column, faint=True)
    apply_log(
        figure, [1.0, *shown_values(last for _, last in ends.values()), *(r.value for _, r in earlier)], col=column
    )
    figure.add_vline(x=1, line={"dash": "dash", "width": 1.2, "color": FLOOR}, col=column, row=1)


def _alt(ends: Mapping[str, Mapping[Site, tuple[Reading, Reading]]]) -> str:
    words: list[str] = []
    for measure, name in _PANELS:
        latest: Sequence[Reading] = [last for _, last in ends[measure].values() if last.value > 0]
        usable = [each.value for each in latest if math.isfinite(each.value)]
        if usable:
            middle = math.exp(sum(map(math.log, usable)) / len(usable))
            words.append(
                f"{name.capitalize()}: {len(usable)} layers, {number(min(usable))} to {number(max(usable))},"
                f" geometric mean {number(middle)}."
            )
        else:
            words.append(f"{name.capitalize()}: no readings.")
    return " ".join(words)
