from __future__ import annotations

import math

import pytest

from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.figures.gain_by_depth import gain_by_depth
from holdfast.store.memory import MemoryRun


def _named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


@pytest.mark.parametrize(("measure", "port"), [("backward-gain", "grad_output"), ("drift-gain", "output")])
def test_the_dots_are_the_latest_and_the_first_readings_with_their_intervals(run, measure, port):
    figure = gain_by_depth(run)
    words = measure.replace("-", " ")
    latest, first = _named(figure, words), _named(figure, f"{words}, first reading")
    for site in run.sites(port=port):
        readings = run.readings(measure, site)
        if not readings:
            continue
        at = list(latest.y).index(site.label)
        last = readings[-1]
        assert latest.x[at] == last.value
        low, high = last.interval
        assert latest.error_x.array[at] == pytest.approx(max(0.0, high - last.value))
        assert latest.error_x.arrayminus[at] == pytest.approx(max(0.0, last.value - low))
        assert "95 % interval" in latest.customdata[at]
        assert "n = 64" in latest.customdata[at]
        assert first.x[list(first.y).index(site.label)] == readings[0].value


def test_axes_are_logarithmic_with_unit_and_a_line_at_one(run):
    figure = gain_by_depth(run)
    for axis, name in ((figure.layout.xaxis, "backward gain"), (figure.layout.xaxis2, "drift gain")):
        assert axis.type == "log"
        assert axis.title.text == f"{name} (ratio)"
        assert axis.range[0] < 0 < axis.range[1]
    assert [shape.x0 for shape in figure.layout.shapes] == [1, 1]


def test_a_gain_without_readings_says_so_in_its_panel():
    run = MemoryRun()
    reading = Reading("backward-gain", Site("a", "grad_output"), 1, 0.5, Unit.RATIO, 8)
    run.write(StepRecord(1, readings=(reading,)))
    figure = gain_by_depth(run)
    assert [note.text for note in figure.layout.annotations] == ["no readings"]
    assert figure.layout.annotations[0].xref == "x2 domain"


def test_zero_and_nan_are_shown_as_what_they_are():
    run = MemoryRun()
    values = {"a": 0.5, "b": 0.0, "c": math.nan}
    run.write(
        StepRecord(
            1,
            readings=tuple(
                Reading("backward-gain", Site(name, "grad_output"), 1, value, Unit.RATIO, 8)
                for name, value in values.items()
            ),
        )
    )
    figure = gain_by_depth(run)
    dots, broken = _named(figure, "backward gain"), _named(figure, "backward gain, not finite")
    symbols = dict(zip(dots.y, dots.marker.symbol, strict=True))
    assert symbols == {"a": "circle", "b": "triangle-left-open"}
    assert dots.x[list(dots.y).index("b")] < 0.5
    assert list(broken.y) == ["c"]
    assert "not a number" in broken.customdata[0]


def test_depth_runs_downwards_although_gradients_come_in_reverse(run):
    figure = gain_by_depth(run)
    assert list(figure.layout.yaxis.categoryarray)[-1] == run.structure().order[0]


def test_nothing_to_show(empty_run):
    assert gain_by_depth(empty_run).layout.annotations[0].text == "no readings"
