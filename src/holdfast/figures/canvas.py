"""What every figure shares: its size, its title, its words for those who cannot see it, and what it is when empty."""

from __future__ import annotations

import plotly.graph_objects as go

from holdfast.figures.theme import Theme, template
from holdfast.figures.wording import safe


def finish(figure: go.Figure, *, title: str, alt: str, height: int, theme: Theme) -> go.Figure:
    """Give a figure its template, title, height and alternative text.

    Args:
        figure: with its traces and axes; changed in place.
        title: plain text.
        alt: what the figure shows, in sentences, for a screen reader; kept in `figure.layout.meta["alt"]`.
        height: in pixels; the width is the container's.
        theme: `"light"` or `"dark"`.

    Returns:
        The same figure.
    """
    figure.update_layout(
        template=template(theme), title_text=safe(title), height=height, meta={"alt": alt, "title": title}
    )
    return figure


def blank(title: str, reason: str, *, theme: Theme) -> go.Figure:
    """A figure without data that says so.

    Args:
        title: of the figure that would be there.
        reason: why there is nothing, such as `"no readings of parameter-drift at lag 100"`.
        theme: `"light"` or `"dark"`.

    Returns:
        A figure without traces, with one sentence in its middle; `layout.meta["blank"]` is true.
    """
    figure = go.Figure()
    figure.add_annotation(text=safe(reason), x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    finish(figure, title=title, alt=f"Nothing to show: {reason}.", height=180, theme=theme)
    figure.layout.meta = {**figure.layout.meta, "blank": True}
    return figure


def height_for(rows: int, *, row: int = 17, frame: int = 130, least: int = 300, most: int = 900) -> int:
    """Height of a figure with one row a layer, in pixels; beyond `most` the labels thin out instead.

    Args:
        rows: how many.
        row: pixels each.
        frame: pixels of title, legend and axis.
        least: smallest height.
        most: greatest height.
    """
    return max(least, min(most, frame + row * rows))
