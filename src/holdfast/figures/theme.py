"""The one look of every figure: light and dark templates, colours that colour-blind people can tell apart."""

from __future__ import annotations

from typing import Literal, get_args

import plotly.graph_objects as go

from holdfast.core.errors import InputError

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = get_args(Theme)

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif'

# Okabe & Ito (2008), "Color Universal Design". Yellow is too pale on white and black is no colour on black: left out.
BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"

# A trace that names no colour takes these in turn, so that a change of template alone changes the theme.
_COLOURS: dict[str, tuple[str, ...]] = {
    "light": (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY),
    "dark": (SKY, ORANGE, "#2FBF95", PURPLE, "#F2855A", "#8FA9FF"),
}

# Series of one panel: Okabe and Ito's hues at a lightness with at least 3:1 contrast on white and on the dark page.
SERIES = ("#2A86C9", "#D5601A", "#12976F", "#BE6A98")

# Translucent greys read the same on white and on black.
NOISE = "rgba(128, 128, 128, 0.42)"
"""Fill of what lies within noise."""
FAINT = "rgba(128, 128, 128, 0.55)"
"""Guide lines, raw series behind a smoothed one."""
FLOOR = "rgba(128, 128, 128, 0.95)"
"""Marks of a noise floor."""
ALERT = "#E0522D"
"""Figures that are not finite: between the two themes' vermilion, legible on both."""
SEQUENTIAL = "Viridis"
"""For magnitudes: even steps of lightness, and no grey in it, so that grey can mean "within noise"."""

SEVERITY_COLOURS = {"critical": "#D5401F", "warning": "#D98A00", "info": "#3A8FC4"}
SEVERITY_SYMBOLS = {"critical": "x", "warning": "triangle-up", "info": "circle"}

_INK: dict[str, dict[str, str]] = {
    "light": {"paper": "#ffffff", "ink": "#1c2733", "quiet": "#5b6875", "grid": "#e6eaee", "line": "#b6c0ca"},
    "dark": {"paper": "#171d24", "ink": "#e4eaf0", "quiet": "#9aa8b5", "grid": "#28313b", "line": "#46525f"},
}


def template(theme: str = "light") -> go.layout.Template:
    """The template of a theme.

    Args:
        theme: `"light"` or `"dark"`.

    Returns:
        A Plotly template; `figure.update_layout(template=…)` changes a figure's theme.

    Raises:
        InputError: there is no such theme.
    """
    if theme not in THEMES:
        raise InputError("a theme, 'light' or 'dark'", repr(theme), "type: theme='light'")
    ink = _INK[theme]
    axis = {
        "gridcolor": ink["grid"],
        "linecolor": ink["line"],
        "tickcolor": ink["line"],
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": True,
        "tickfont": {"size": 11, "color": ink["quiet"]},
        "title": {"font": {"size": 12, "color": ink["quiet"]}, "standoff": 8},
        "exponentformat": "power",
        "minexponent": 4,
    }
    return go.layout.Template(
        layout={
            "colorway": _COLOURS[theme],
            "paper_bgcolor": ink["paper"],
            "plot_bgcolor": ink["paper"],
            "font": {"family": FONT, "size": 12, "color": ink["ink"]},
            "title": {"font": {"size": 15}, "x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 12}},
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 12, "r": 12, "t": 56, "b": 12},
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.0,
                "yanchor": "bottom",
                "font": {"size": 11, "color": ink["quiet"]},
                "bgcolor": "rgba(0, 0, 0, 0)",
            },
            "hoverlabel": {
                "bgcolor": ink["paper"],
                "bordercolor": ink["line"],
                "font": {"family": FONT, "size": 12, "color": ink["ink"]},
                "align": "left",
                "namelength": -1,
            },
            "coloraxis": {"colorbar": {"outlinewidth": 0}},
            "annotationdefaults": {"font": {"size": 12, "color": ink["quiet"]}},
            "shapedefaults": {"line": {"color": FAINT, "width": 1}},
            "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": ink["line"], "activecolor": ink["quiet"]},
            "hovermode": "closest",
        }
    )
