from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from holdfast.cli.show_layers import cell, layers_as_dicts, show_layers
from holdfast.core.finding import Diagnosis, Finding
from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.store.memory import MemoryRun

SITE = Site("sigmoid1", "input")


def drift(value: float, floor: float = 0.1, lag: int = 1, site: Site = SITE) -> Reading:
    return Reading("parameter-drift", site, 400, value, "reference SD", 128, floor, (0.9 * value, 1.1 * value), lag)


@pytest.fixture
def history() -> MemoryRun:
    run = MemoryRun("example")
    readings = (
        drift(0.4),
        drift(2.0, lag=100, site=SITE.at(phase="probe")),
        Reading("observed-drift", SITE, 400, 0.5, "reference SD", 128, 0.25, lag=5),
        Reading("saturated-fraction", SITE, 400, 0.25, "fraction", 128),
        Reading("backward-gain", SITE.at(port="grad_output"), 400, 0.031, "ratio", 128),
        drift(0.05, site=Site("linear2", "input")),
        Reading("collapsed-features", Site("output", "input"), 400, 1.0, "fraction", 128),
    )
    run.write(StepRecord(400, readings=readings))
    return run


HEALTHY = Diagnosis("example", 400, "Nothing holds this run back.", ())


def shown(history: MemoryRun, width: int = 110, diagnosis: Diagnosis = HEALTHY) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    show_layers(console, history, diagnosis)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_row_tells_each_figure_with_its_uncertainty(history: MemoryRun) -> None:
    lines = {line.split()[0]: line.split() for line in shown(history) if line}
    assert lines["sigmoid1"][1:] == [
        "0.40",
        "[0.36,",
        "0.44]",
        "2.0",
        "[1.8,",
        "2.2]",
        "0.50",
        "(0.25)",
        "25",
        "%",
        "0.031",
    ]


def test_below_the_floor_there_is_no_figure(history: MemoryRun) -> None:
    (line,) = [line for line in shown(history) if line.startswith("linear2")]
    assert "within noise" in line
    assert "0.05" not in line


def test_a_collapsed_layer_says_so_instead_of_a_drift(history: MemoryRun) -> None:
    (line,) = [line for line in shown(history) if line.startswith("output")]
    assert line.split() == ["output", "collapsed", "collapsed", "collapsed", "–", "–"]


def test_where_the_diagnosis_found_a_dead_signal_there_is_no_drift_figure(history: MemoryRun) -> None:
    finding = Finding("collapsed-signal", "critical", (SITE,), "the samples cannot be told apart", ())
    dead = Diagnosis("example", 400, "The signal is dead.", (finding,))
    (line,) = [line for line in shown(history, diagnosis=dead) if line.startswith("sigmoid1")]
    assert line.split() == ["sigmoid1", "collapsed", "collapsed", "collapsed", "25", "%", "0.031"]
    row = layers_as_dicts(history, dead)[0]
    assert (row["signal_collapsed"], row["drift"], row["drift_100"], row["observed_drift"]) == (True, None, None, None)
    assert row["saturated"] is not None


def test_columns_that_no_layer_needs_are_left_out(history: MemoryRun) -> None:
    head = "\n".join(shown(history)[:3])
    assert "satu-" in head
    assert "dead" not in head


@pytest.mark.parametrize(("width", "told"), [(110, "0.40 [0.36, 0.44]"), (80, "0.40 [0.36, 0.44]"), (68, "0.40 ")])
def test_a_narrow_terminal_loses_intervals_before_it_loses_figures(history: MemoryRun, width: int, told: str) -> None:
    (line,) = [line for line in shown(history, width) if line.startswith("sigmoid1")]
    assert told in line
    assert len(line) <= width
    assert "…" not in line
    assert "0.031" in line


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0312, "0.031 [0.029, 0.033]"), (2e-9, "< 0.0001"), (12.3, "12 [12, 13]"), (3e7, "3×10⁷")],
)
def test_value_and_interval_have_the_same_decimals(value: float, told: str) -> None:
    reading = Reading("parameter-drift", SITE, 1, value, "reference SD", 64, None, (0.94 * value, 1.06 * value), 1)
    assert cell(reading, "interval").plain == told


def test_the_head_of_every_drift_tells_its_lag(history: MemoryRun) -> None:
    head = shown(history)[2].split()
    assert head[:8] == ["lag", "1", "lag", "100", "lag", "5", "(floor)", "rated"]
    other = Reading("observed-drift", Site("linear2", "input"), 410, 0.5, "reference SD", 128, 0.25, lag=10)
    history.write(StepRecord(410, readings=(other, drift(1.0, lag=120, site=Site("linear2", "input", phase="probe")))))
    head = shown(history)[2].split()
    assert head[:8] == ["lag", "1", "lag", "100–120", "lag", "5–10", "(floor)", "rated"]
    legend = " ".join(" ".join(shown(history)).split())
    assert "drifts of unequal lags are not comparable" in legend


def test_a_run_without_layers_prints_heads_only() -> None:
    assert shown(MemoryRun())[0].startswith("Layers")


def test_what_is_not_finite_is_named() -> None:
    assert cell(drift(math.inf), "interval").plain == "∞"
    assert cell(None, "share").plain == "–"


def test_rows_as_json_carry_every_reading_of_a_layer(history: MemoryRun) -> None:
    rows = json.loads(json.dumps(layers_as_dicts(history, HEALTHY), allow_nan=False))
    first = rows[0]
    assert first["layer"] == "sigmoid1"
    assert first["drift"]["value"] == 0.4
    assert first["drift"]["noise_floor"] == 0.1
    assert first["dead"] is None
