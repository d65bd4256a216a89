from __future__ import annotations

import math

import pytest

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.figures.wording import described, number, shortened, uncertainty, unique, verdict


def _reading(value: float, **more) -> Reading:
    return Reading("parameter-drift", Site("a", "input"), 3, value, "reference SD", 64, **more)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.5, "1.50"), (-0.25, "−0.250"), (99999.0, "1×10⁵"), (0.00012, "1.2×10⁻⁴"), (math.nan, "not a number"),
     (-math.inf, "−∞"), (400.0, "400")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_a_reading_tells_its_uncertainty_and_whether_it_says_anything():
    reading = _reading(0.1, noise_floor=0.2, interval=(0.05, 0.15), lag=1)
    assert uncertainty(reading) == "95 % interval 0.0500 to 0.150 · noise floor 0.200 · n = 64"
    assert described(reading).endswith("<b>within noise</b>")
    assert "0.100 reference SD" in described(reading)
    assert verdict(_reading(0.3, noise_floor=0.2)) == ""
    assert verdict(_reading(math.inf)) == "not finite"


@pytest.mark.parametrize("length", [5, 12, 26])
def test_a_short_name_is_short(length):
    for text in ("x" * 40, "a.b.c", "encoder.layers.11.attention.output.dense", ""):
        assert len(shortened(text, length)) <= length


def test_names_on_an_axis_differ():
    assert len(set(unique(["a", "a", "b", "a"]))) == 4
