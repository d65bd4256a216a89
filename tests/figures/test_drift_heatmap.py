from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.figures.drift_heatmap import CELLS, drift_heatmap
from holdfast.store.memory import MemoryRun


def _trace(figure, name):
    return next((trace for trace in figure.data if trace.type == "heatmap" and trace.name == name), None)


def test_the_cells_are_the_readings(run):
    figure = drift_heatmap(run)
    colour, noise = _trace(figure, "drift"), _trace(figure, "within noise")
    rows, columns = list(colour.y), list(colour.x)
    shown = 0
    for reading in run.readings("parameter-drift", lag=1):
        place = rows.index(reading.site.label), columns.index(reading.step)
        if reading.above_noise:
            np.testing.assert_allclose(10 ** colour.z[place], reading.value, rtol=1e-5)
            np.testing.assert_allclose(
                colour.customdata[place], [reading.value, *reading.interval, reading.noise_floor], rtol=1e-6
            )
            assert math.isnan(noise.z[place])
        else:
            assert math.isnan(colour.z[place])
            assert noise.z[place] == 1
            np.testing.assert_allclose(noise.customdata[place][0], reading.value, rtol=1e-6)
        shown += 1
    assert shown == len(rows) * len(columns)


def test_layers_run_from_top_to_bottom_in_the_order_of_execution(run):
    figure = drift_heatmap(run)
    assert list(figure.layout.yaxis.categoryarray)[::-1] == list(run.structure().order)


def test_the_boxes_say_what_is_within_noise_and_carry_interval_floor_and_n(run):
    figure = drift_heatmap(run)
    assert "<b>within noise</b>" in _trace(figure, "within noise").hovertemplate
    words = _trace(figure, "drift").hovertemplate
    assert "within noise" not in words
    assert "reference SD" in words
    assert "95\u00a0% interval %{customdata[1]:.3g} to %{customdata[2]:.3g}" in words
    assert "noise floor %{customdata[3]:.3g}" in words
    assert "n = 64" in words
    assert "over 1 step" in words


def test_a_figure_that_is_not_finite_is_shown_as_such_and_a_missing_one_stays_blank():
    run = MemoryRun()
    first, second = Site("a", "input"), Site("b", "input")
    readings = [(1, first, 0.5), (1, second, math.nan), (2, first, math.inf), (3, second, 0.0)]
    for step, site, value in readings:
        run.write(StepRecord(step, readings=(Reading("parameter-drift", site, step, value, "reference SD", 8, lag=1),)))
    figure = drift_heatmap(run)
    broken, colour = _trace(figure, "not finite"), _trace(figure, "drift")
    np.testing.assert_array_equal(np.isfinite(broken.z), [[False, True, False], [True, False, False]])
    np.testing.assert_array_equal(np.isfinite(colour.z), [[True, False, False], [False, False, True]])
    assert _trace(figure, "within noise") is None
    # An exact zero lies at the lower end of the scale.
    assert colour.z[1, 2] == colour.zmin


def test_no_reading_is_said(empty_run):
    figure = drift_heatmap(empty_run)
    assert not figure.data
    assert figure.layout.annotations[0].text == "no readings"


def test_one_layer_and_one_step():
    run = MemoryRun()
    reading = Reading("parameter-drift", Site("", "input"), 1, 0.2, Unit.REFERENCE_SD, 8, 0.1, lag=1)
    run.write(StepRecord(1, readings=(reading,)))
    figure = drift_heatmap(run)
    assert figure.data[0].z.shape == (1, 1)
    assert figure.data[0].y == ("(model)",)


@pytest.mark.slow
def test_a_thousand_layers_keep_every_row_and_thin_their_labels(run_of):
    figure = drift_heatmap(run_of([(f"blocks.{index}.fc", "Linear") for index in range(1000)], steps=40, every=1))
    assert figure.data[0].z.shape[0] == 1000
    assert figure.data[0].z.size <= CELLS
    assert list(figure.data[0].x)[-1] == 40  # the last step stays
    assert "every 3th observed" in figure.layout.xaxis.title.text or "observed" in figure.layout.xaxis.title.text
    assert len(figure.layout.yaxis.tickvals) <= 50
    assert figure.layout.height <= 900


def test_a_name_cannot_become_markup(nasty_run):
    figure = drift_heatmap(nasty_run)
    names = " ".join(figure.data[0].y)
    assert "<" not in names
    assert "&lt;script&gt;" in names
    assert "$" not in names
    assert "<script" not in figure.to_json().replace("\\u003c", "<")


def test_another_lag_and_phase(run):
    figure = drift_heatmap(run, lag=100, phase="probe")
    assert "over 100 steps" in figure.layout.title.text
    assert min(figure.data[0].x) > 100
