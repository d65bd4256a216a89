from __future__ import annotations

import subprocess
import sys

import pytest

from holdfast.core.errors import InputError
from holdfast.figures.drift_heatmap import drift_heatmap
from holdfast.figures.theme import ALERT, SERIES, SEVERITY_COLOURS, THEMES, template


def _luminance(colour: str) -> float:
    """WCAG 2.2 relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("colour", [*SERIES, ALERT, *SEVERITY_COLOURS.values()])
def test_marks_stand_out_from_both_pages(theme, colour):
    least = 2.5 if colour == SEVERITY_COLOURS["warning"] else 3  # WCAG 1.4.11; the warning also has its own shape
    assert _contrast(colour, template(theme).layout.paper_bgcolor) >= least


@pytest.mark.parametrize("theme", THEMES)
def test_text_can_be_read(theme):
    layout = template(theme).layout
    assert _contrast(layout.font.color, layout.paper_bgcolor) >= 7
    assert _contrast(layout.xaxis.tickfont.color, layout.paper_bgcolor) >= 4.5


def test_a_figure_takes_its_theme(run):
    assert drift_heatmap(run, theme="dark").layout.template.layout.paper_bgcolor == "#171d24"


def test_there_are_two_themes():
    with pytest.raises(InputError, match="expected a theme, 'light' or 'dark'; got 'sepia'; type: theme='light'"):
        template("sepia")


def test_importing_holdfast_does_not_import_plotly():
    code = "import sys, holdfast; raise SystemExit(any(name.split('.')[0] == 'plotly' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
