from __future__ import annotations

from holdfast.figures.drift_by_depth import drift_by_depth


def _named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_the_marks_are_the_latest_readings_open_within_noise(run):
    figure = drift_by_depth(run)
    marks = _named(figure, "parameter drift over 1 step")
    for place, (name, value, symbol) in enumerate(zip(marks.y, marks.x, marks.marker.symbol, strict=True)):
        site = next(site for site in run.sites(port="input", phase="train") if site.label == name)
        last = run.readings("parameter-drift", site, lag=1)[-1]
        if last.value > 0:
            assert value == last.value
            assert symbol == ("circle" if last.above_noise else "circle-open")
        assert f"step {last.step}" in marks.customdata[place]
    assert len(marks.x) == len(run.structure().order)


def test_every_series_has_its_floors(run):
    figure = drift_by_depth(run)
    floors = [trace for trace in figure.data if trace.name.startswith("noise floor")]
    assert len(floors) == 3
    assert [bool(trace.showlegend) for trace in floors] == [True, False, False]
    observed = {reading.noise_floor for reading in run.readings("observed-drift")}
    assert set(floors[-1].x) == observed


def test_the_unit_is_on_the_axis(run):
    assert drift_by_depth(run).layout.xaxis.title.text == "drift (reference SD)"


def test_nothing_to_show(empty_run):
    assert drift_by_depth(empty_run).layout.annotations[0].text == "no readings"
