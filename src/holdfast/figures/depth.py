"""Layers in the order in which they run: the vertical axis of most figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.figures.wording import safe, shortened, unique

MOST_LABELS = 50


def by_depth(history: History, sites: Iterable[Site], stream: str = "net") -> list[Site]:
    """Sites in the order of execution of their modules.

    Args:
        history: a run; its structure gives the order where one forward pass was seen.
        sites: to sort; equal modules keep their order.
        stream: the model's name.

    Returns:
        The same sites. Modules that the structure does not list come where they were first observed, after those
        that it lists.
    """
    structure = history.structure(stream)
    listed = structure.order if structure is not None else ()
    place = {module: index for index, module in enumerate(listed)}
    # Inputs are observed in the forward pass, so their order is that of execution; gradients come reversed.
    observed: Sequence[Site] = [*history.sites(port="input", stream=stream), *history.sites(stream=stream)]
    for site in observed:
        place.setdefault(site.module, len(place))
    return sorted(sites, key=lambda site: (place.get(site.module, len(place)), site.call))


def layer_axis(figure: go.Figure, sites: Sequence[Site]) -> dict[Site, str]:
    """Make a figure's y axis the layers, the first on top.

    Args:
        figure: changed in place; all its y axes where it has several.
        sites: in order of depth.

    Returns:
        Each site's category: its whole name, safe and unique. Ticks show it shortened, and at most `MOST_LABELS`
        of them.
    """
    names = dict(zip(sites, unique(site.label for site in sites), strict=True))
    stride = math.ceil(len(sites) / MOST_LABELS)
    shown = list(names)[::stride]
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=list(names.values())[::-1],
        range=[-0.5, len(names) - 0.5],
        tickvals=[names[site] for site in shown],
        ticktext=[safe(shortened(site.label)) for site in shown],
    )
    title = "layer, in order of execution" + (f" (1 of {stride} named)" if stride > 1 else "")
    figure.update_yaxes(title_text=title, selector=0)
    return names


def first_and_last(readings: Iterable[Reading]) -> dict[Site, tuple[Reading, Reading]]:
    """Each site's earliest and latest reading.

    Args:
        readings: of one measure, in rising order of step.

    Returns:
        Sites in order of appearance; both readings are the same where there is only one.
    """
    ends: dict[Site, tuple[Reading, Reading]] = {}
    for reading in readings:
        ends[reading.site] = (ends[reading.site][0] if reading.site in ends else reading, reading)
    return ends
