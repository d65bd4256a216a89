from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import holdfast.api
from holdfast.core.event import Event
from holdfast.core.finding import SEVERITIES, Diagnosis, Finding, Severity
from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.store.memory import MemoryRun

Process = Callable[..., subprocess.CompletedProcess[str]]


def stub(*severities: Severity) -> type:
    """Stands for `Run`: one finding of each severity given."""
    site = Site("fc", "input")
    reading = Reading("saturated-fraction", site, 7, float("inf"), "fraction", 64)
    findings = tuple(Finding("rule", severity, (site,), "Bad.", (reading,)) for severity in severities)

    class Stub:
        def __init__(self, path: Path) -> None:
            self.path = path
            self.history = MemoryRun()
            self.history.write(StepRecord(7, events=(Event(7, "cadence", "took 1 %", data={"overhead": 0.01}),)))

        def __enter__(self) -> Stub:
            return self

        def __exit__(self, *error: object) -> None: ...

        def diagnose(self) -> Diagnosis:
            return Diagnosis(str(self.path), 7, "The verdict.", findings)

    return Stub


@pytest.mark.parametrize("fail_on", SEVERITIES)
@pytest.mark.parametrize("worst", [None, *SEVERITIES])
@pytest.mark.parametrize("as_json", [False, True])
def test_the_exit_code_compares_the_worst_finding_with_fail_on(
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    worst: Severity | None,
    fail_on: Severity,
    as_json: bool,
) -> None:
    severities = [] if worst is None else SEVERITIES[: SEVERITIES.index(worst) + 1]
    monkeypatch.setattr(holdfast.api, "Run", stub(*severities))
    result = run("diagnose", "r", "--fail-on", fail_on, *(["--json"] if as_json else []))
    bad = worst is not None and SEVERITIES.index(worst) >= SEVERITIES.index(fail_on)
    assert result.exit_code == int(bad)
    assert "The verdict." in result.stdout


@pytest.mark.parametrize(("worst", "code"), [("info", 0), ("warning", 1)])
def test_a_remark_alone_is_clean_unless_asked_otherwise(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, worst: Severity, code: int
) -> None:
    monkeypatch.setattr(holdfast.api, "Run", stub(worst))
    assert run("diagnose", "r").exit_code == code


def test_json_is_exactly_the_diagnosis(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdfast.api, "Run", stub("critical"))
    told = json.loads(run("diagnose", "r", "--json").stdout, parse_constant=pytest.fail)
    assert told.pop("monitor") == [{"overhead": 0.01}]
    assert told == stub("critical")(Path("r")).diagnose().as_dict()
    assert list(told) == ["run", "steps", "verdict", "findings", "inconclusive", "not_seen"]
    assert {"rule", "severity", "rank", "sites", "message", "evidence", "treatments"} == set(told["findings"][0])
    assert {"measure", "site", "step", "value", "unit", "noise_floor", "n"} <= set(told["findings"][0]["evidence"][0])


def test_a_real_run_is_diagnosed_in_a_process_of_its_own(demo_folder: Path, process: Process) -> None:
    folder = demo_folder / "runs" / "demo-suffering"
    done = process("diagnose", folder, "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert told["steps"] == 110
    assert told["findings"][0]["severity"] == "critical"
    assert [finding["rank"] for finding in told["findings"]] == list(range(1, len(told["findings"]) + 1))
    plain = process("diagnose", folder, "--fail-on", "critical", NO_COLOR="1", FORCE_COLOR="")
    assert plain.returncode == 1
    assert told["findings"][0]["rule"] in plain.stdout
    assert "every 10 steps, took" in plain.stdout
    assert plain.stderr == ""


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_what_is_no_run_is_one_sentence(
    run: Callable[..., Result], tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "run")
    result = run("diagnose", "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("holdfast: expected a run")
    assert result.stderr.count("\n") == 1


def test_a_mistake_gives_no_traceback_in_a_process_of_its_own(process: Process) -> None:
    done = process("diagnose", "gone")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("holdfast: expected a run's folder; got 'gone', which does not exist; ")
