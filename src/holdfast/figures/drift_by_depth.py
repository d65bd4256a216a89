"""`drift_by_depth`: the three drifts of every layer beside each other."""

from __future__ import annotations

import plotly.graph_objects as go

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Phase, Site
from holdfast.figures.canvas import blank, finish, height_for
from holdfast.figures.depth import by_depth, first_and_last, layer_axis
from holdfast.figures.dots import SYMBOLS, add_dots, shown_values
from holdfast.figures.scale import apply_log
from holdfast.figures.theme import SERIES, Theme
from holdfast.figures.wording import number

_SERIES: tuple[tuple[str, Phase, int | None, str], ...] = (
    ("parameter-drift", "train", 1, "parameter drift over 1 step"),
    ("parameter-drift", "probe", 100, "parameter drift over 100 steps"),
    ("observed-drift", "train", None, "observed drift between two batches"),
)


def drift_by_depth(history: History, *, stream: str = "net", theme: Theme = "light") -> go.Figure:
    """Latest parameter drift (lag 1 and lag 100) and observed drift of every layer's input, with intervals and floors.

    What lies left of its floor's stroke is drawn open: within noise. Observed drift that lies at its floor while
    parameter drift does not is the picture of a monitor that would have seen nothing.

    Args:
        history: a run.
        stream: the model's name.
        theme: `"light"` or `"dark"`.

    Returns:
        A figure with one trace a series and one for each series' floors.
    """
    title = "How far each layer's input moved: by parameters, and between batches"
    drawn: dict[str, dict[Site, Reading]] = {}
    for measure, phase, lag, name in _SERIES:
        latest = {
            site.at(phase="train"): last
            for site, (_, last) in first_and_last(history.readings(measure, lag=lag)).items()
            if (site.port, site.phase, site.stream) == ("input", phase, stream)
        }
        if latest:
            drawn[name] = latest
    if not drawn:
        return blank(title, "no readings", theme=theme)
    layers = by_depth(history, dict.fromkeys(site for each in drawn.values() for site in each), stream)
    everything = shown_values(each for latest in drawn.values() for each in latest.values())
    least = min((value for value in everything if value > 0), default=1.0)
    figure = go.Figure()
    labels = layer_axis(figure, layers)
    for index, (name, latest) in enumerate(drawn.items()):
        add_dots(
            figure,
            [(labels[site], reading) for site, reading in latest.items()],
            name=name,
            symbol=SYMBOLS[index],
            colour=SERIES[index],
            floors="unnamed" if index else "named",
            least=least,
        )
    units = sorted({each.unit for latest in drawn.values() for each in latest.values()})
    apply_log(figure, everything)
    figure.update_xaxes(title_text=f"drift ({' / '.join(units)})")
    alt = f"{title}. " + " ".join(_sentence(name, latest) for name, latest in drawn.items())
    return finish(figure, title=title, alt=alt, height=height_for(len(labels), row=19, frame=190), theme=theme)


def _sentence(name: str, latest: dict[Site, Reading]) -> str:
    above = [each for each in latest.values() if each.above_noise]
    if not above:
        return f"{name.capitalize()}: all {len(latest)} layers within noise."
    worst = max(above, key=lambda each: each.value)
    return (
        f"{name.capitalize()}: {len(above)} of {len(latest)} layers above noise, the most at {worst.site.label}"
        f" ({number(worst.value)} {worst.unit})."
    )
