from __future__ import annotations

import numpy as np
import pytest

from holdfast.core.errors import InputError
from holdfast.figures.norm_axes import norm_axes
from holdfast.figures.theme import SERIES


def block(samples, channels, positions):
    """The cells of a block that begins at the first one, of a cube of 4 × 6 × 5."""
    cells = np.zeros((4, 6, 5), dtype=bool)
    cells[:samples, :channels, :positions] = True
    return cells


def outlines(figure, name):
    """How many cells of each face are drawn under a name; front, top, left."""
    return [sum(each is None for each in trace.x) for trace in figure.data if trace.name == name]


@pytest.mark.parametrize(
    ("size", "faces"),
    [
        ((4, 1, 5), [5, 4, 20]),  # batch
        ((1, 6, 5), [30, 6, 5]),  # layer
        ((1, 3, 5), [15, 3, 5]),  # group
        ((1, 1, 1), [1, 1, 1]),
    ],
)
def test_the_three_faces_show_the_block(size, faces):
    figure = norm_axes([("a", block(*size))])
    assert outlines(figure, "shares the first cell's statistic") == faces
    whole = np.array([30, 24, 20])
    assert outlines(figure, "has another") == [each for each in whole - faces if each]


def test_the_first_cell_is_where_the_three_faces_meet():
    figure = norm_axes([("a", block(1, 1, 1))])
    front, top, left = (trace for trace in figure.data if trace.name == "shares the first cell's statistic")
    corners = [
        {pair for pair in zip(each.x, each.y, strict=True) if pair[0] is not None} for each in (front, top, left)
    ]
    assert corners[0] & corners[1] & corners[2] == {(0.0, 0.0)}
    (dot,) = (trace for trace in figure.data if trace.name == "the first cell")
    assert (dot.x[0], dot.y[0]) == (np.mean([x for x, _ in corners[0]]), np.mean([y for _, y in corners[0]]))


def test_cubes_stand_side_by_side_then_below_and_none_leaves_the_axes():
    names = ["a", "b", "c"]
    figure = norm_axes([(name, block(1, 1, 5)) for name in names], columns=2)
    titles = [each for each in figure.layout.annotations if each.text[3:-4] in names]
    assert titles[0].y == titles[1].y > titles[2].y
    assert titles[0].x == titles[2].x < titles[1].x
    for trace in figure.data:
        for axis, values in (("xaxis", trace.x), ("yaxis", trace.y)):
            low, high = figure.layout[axis].range
            assert all(low <= each <= high for each in values if each is not None)
    assert [trace.showlegend for trace in figure.data].count(True) == 3


def test_words_say_what_the_picture_shows():
    alt = norm_axes([("Ghost", block(2, 1, 5))]).layout.meta["alt"]
    assert "Ghost: 10 of 120 cells, in 2 of 4 samples, 1 of 6 channels, 5 of 5 positions." in alt


def test_the_colours_differ_in_lightness_and_stay_when_the_template_changes():
    red, green, blue = (int(SERIES[0][at : at + 2], 16) for at in (1, 3, 5))
    fills = {trace.fillcolor for trace in norm_axes([("a", block(4, 1, 5))]).data if trace.fillcolor}
    assert all(each.startswith((f"rgba({red}, {green}, {blue},", "rgba(128, 128, 128,")) for each in fills)
    assert norm_axes([("a", block(1, 1, 1))], theme="dark").layout.template.layout.paper_bgcolor == "#171d24"


def test_a_name_cannot_become_markup():
    assert "<script" not in norm_axes([("<script>$", block(1, 1, 1))]).layout.annotations[0].text


def test_nothing_is_said():
    assert norm_axes([]).layout.meta["blank"]


@pytest.mark.parametrize("cells", [np.ones((2, 2, 2)), np.ones((2, 2), dtype=bool), np.ones((0, 2, 2), dtype=bool)])
def test_other_arrays_are_refused(cells):
    with pytest.raises(InputError, match=r"booleans \(samples, channels, positions\).* for a; type: spec\.cells"):
        norm_axes([("a", cells)])


def test_no_column_is_refused():
    with pytest.raises(InputError, match="columns=0"):
        norm_axes([("a", block(1, 1, 1))], columns=0)
