from __future__ import annotations

from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.report.layers import layer_rows
from holdfast.store.memory import MemoryRun


def test_one_row_a_layer_in_the_order_of_execution_with_the_latest_readings(run):
    rows = layer_rows(run)
    assert [row.site.module for row in rows] == list(run.structure().order)
    assert [row.kind for row in rows[:2]] == ["Linear", "Sigmoid"]
    for row in rows:
        place = row.site
        assert row.drift == run.readings("parameter-drift", place, lag=1)[-1]
        assert row.drift_100 == run.readings("parameter-drift", place.at(phase="probe"), lag=100)[-1]
        assert row.observed_drift == run.readings("observed-drift", place)[-1]
        assert row.backward_gain == run.readings("backward-gain", place.at(port="grad_output"))[-1]
        assert row.collapsed == run.readings("collapsed-features", place)[-1]
        assert (row.saturated is None) == (row.kind == "Linear")
        assert row.dead is None
    assert rows[0].drift_gain is None
    assert rows[1].drift_gain == run.readings("drift-gain", rows[1].site.at(port="output"))[-1]


def _run(*readings: Reading) -> MemoryRun:
    run = MemoryRun()
    for reading in readings:
        run.write(StepRecord(reading.step, reading.site.stream, readings=(reading,)))
    return run


def test_the_drift_gain_of_training_is_preferred_to_the_probe_s_and_the_probe_s_to_none():
    train = Reading("drift-gain", Site("a", "output"), 1, 1.5, Unit.RATIO, 8, lag=1)
    probe = Reading("drift-gain", Site("a", "output", phase="probe"), 9, 3.0, Unit.RATIO, 8, lag=1)
    assert layer_rows(_run(train, probe))[0].drift_gain is train
    assert layer_rows(_run(probe))[0].drift_gain is probe


def test_of_two_inputs_of_one_module_the_one_that_moved_more_is_shown():
    small, large = (
        Reading("parameter-drift", Site("a", "input", leaf=leaf), 1, value, Unit.REFERENCE_SD, 8, lag=1)
        for leaf, value in (("0", 0.1), ("1", 0.4))
    )
    for order in ((small, large), (large, small)):
        (row,) = layer_rows(_run(*order))
        assert row.drift is large


def test_saturation_of_a_function_stands_in_the_row_of_the_layer_before_it_and_yields_to_the_layer_s_own():
    function = Reading("saturated-fraction", Site("a", "output"), 9, 0.7, Unit.FRACTION, 8)
    own = Reading("saturated-fraction", Site("a", "input"), 1, 0.1, Unit.FRACTION, 8)
    assert [row.saturated for row in layer_rows(_run(function))] == [function]
    assert [row.saturated for row in layer_rows(_run(own, function))] == [own]


def test_a_lag_of_another_decade_is_not_taken_for_one_of_100():
    reading = Reading("parameter-drift", Site("a", "input", phase="probe"), 60, 0.1, Unit.REFERENCE_SD, 8, lag=50)
    (row,) = layer_rows(_run(reading))
    assert row.drift_100 is None


def test_streams_are_apart():
    first, second = (
        Reading("observed-drift", Site("a", "input", stream=stream), 1, 0.1, Unit.REFERENCE_SD, 8, lag=1)
        for stream in ("generator", "critic")
    )
    run = _run(first, second)
    assert [row.site.stream for row in layer_rows(run)] == ["generator", "critic"]
    (row,) = layer_rows(run, "critic")
    assert row.observed_drift is second


def test_weights_make_no_rows():
    reading = Reading("weight-norm", Site("a", "weight", leaf="weight"), 1, 3.0, Unit.NORM, 8)
    assert layer_rows(_run(reading)) == []


def test_nothing_observed():
    assert layer_rows(MemoryRun()) == []
