from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console
from typer.testing import Result

from holdfast.api import Run
from holdfast.cli import demo as module
from holdfast.core.errors import RunError
from holdfast.core.finding import Diagnosis, Finding
from holdfast.core.site import Site
from holdfast.lab.demo import DataName
from holdfast.lab.networks import Variant

Process = Callable[..., subprocess.CompletedProcess[str]]


def test_the_words_are_those_of_the_lab() -> None:
    assert get_args(module.Variant) == get_args(Variant)
    assert get_args(module.DataName) == get_args(DataName)


def test_it_ends_well_with_everything_a_person_needs(demo_folder: Path) -> None:
    told = (demo_folder / "stdout").read_text(encoding="utf-8")
    assert (demo_folder / "code").read_text() == "0"
    order = [
        "Trained  10 sigmoid layers of width 64, Glorot initialisation with gain 4",
        "held-out samples",
        "Layers  ",
        "parameter drift",
        "grad.",
        "linear1 ",
        "sigmoid10",
        "Findings",
        "critical",
        "Verdict  ",
        "Not seen",
        "Prescription",
        "chosen: insert-norm, for ",
        "Change  insert-norm",
        "    - ",
        "    + ",
        "Proof  ",
        "treated − untreated: ",
        "n = 2 seeds",
        "untreated ",
        "learning rate ÷ 3 ",
        "Means over 2 trainings an arm of 55 steps",
        "Receipt  ",
        f"Report  {demo_folder / 'demo-report.html'}",
        "Run     runs/demo-suffering",
        "holdfast explain ",
        "holdfast diagnose runs/demo-suffering --json",
    ]
    places = [told.index(each) for each in order]
    assert places == sorted(places)
    assert (demo_folder / "demo-report.html").read_text(encoding="utf-8").startswith("<!")


def test_every_layer_has_its_drifts_with_interval(demo_folder: Path) -> None:
    told = (demo_folder / "stdout").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^(linear\d+|sigmoid\d+|output) +(\S.*)$", told, re.MULTILINE))
    assert len(rows) == 21
    interval = r"\d[\d.]* \[\d[\d.]*, \d[\d.]*\]"
    assert re.match(rf"{interval} +{interval} +\d[\d.]* \(\d[\d.]*\) +\d+ % +\d", rows["sigmoid9"])
    assert rows["linear1"].startswith("within noise")  # the pixels themselves do not move


def test_results_go_to_stdout_and_the_rest_to_stderr_without_colour(demo_folder: Path) -> None:
    out, err = ((demo_folder / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    assert "110/110" in err
    assert "110/110" not in out
    assert "Findings" not in err
    assert re.search(r"proof \d .* (\d+)/\1 ", err)
    assert "Prescription" not in err
    assert "\x1b" not in out + err


def test_json_is_one_object_with_the_diagnosis_that_diagnose_gives(process: Process, tmp_path: Path) -> None:
    words = [
        "--variant",
        "dead",
        "--steps",
        30,
        "--seed",
        3,
        "--proof-seeds",
        1,
        "--out",
        "run",
        "--report",
        "page.html",
    ]
    done = process("demo", *words, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["demo"]["variant"], told["demo"]["seed"], told["demo"]["steps"]) == ("dead", 3, 30)
    assert told["demo"]["report"] == str(tmp_path / "page.html")
    assert [row["layer"] for row in told["layers"]][:2] == ["linear1", "sigmoid1"]
    assert told["cure"]["prescription"]["choices"][0]["decision"] == "chosen"
    assert told["cure"]["prescription"]["diff"].startswith("- ")
    first = told["cure"]["proofs"][0]
    assert (first["primary"], first["seeds"], first["steps"], len(first["arms"])) == ("accuracy", 1, 15, 4)
    assert told["cure"]["receipt"] is None  # a single seed has no interval
    again = process("diagnose", "run", "--json")
    found = json.loads(again.stdout)
    (account,) = found.pop("monitor")
    assert (account["every"], account["observed"], account["steps"]) == (10, 4, 30)
    assert found == told["diagnosis"]


def test_ctrl_c_keeps_the_run(
    tmp_path: Path, command: list[str], environment: Callable[..., dict[str, str]], process: Process
) -> None:
    words = [*command, "demo", "--steps", "1000000"]
    child = subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        seen = steps_of(tmp_path / "runs" / "demo-suffering", at_least=25)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("holdfast:")]
    told = re.fullmatch(
        r"holdfast: interrupted after (\d+) of 1000000 steps; the run is kept; "
        r"type: holdfast diagnose runs/demo-suffering",
        line,
    )
    assert told is not None, line
    with Run(tmp_path / "runs" / "demo-suffering") as run:
        assert run.steps >= int(told[1]) >= seen
        assert run.durable_step >= int(told[1])
    assert process("diagnose", "runs/demo-suffering").returncode in (0, 1)


@pytest.mark.slow
def test_ctrl_c_during_the_proof_keeps_the_run(
    tmp_path: Path, command: list[str], environment: Callable[..., dict[str, str]], process: Process
) -> None:
    words = [*command, "demo", "--steps", "40", "--proof-seeds", "100000"]
    with (tmp_path / "err").open("w+") as err:
        child = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=err, text=True)
        try:
            steps_of(tmp_path / "runs" / "demo-suffering", at_least=40)
            time.sleep(3)  # the proof would take hours
            child.send_signal(signal.SIGINT)
            out, _ = child.communicate(timeout=60)
        finally:
            child.kill()
        err.seek(0)
        told = err.read()
    assert (child.returncode, out) == (130, "")
    assert "Traceback" not in told
    assert told.splitlines()[-1] == (
        "holdfast: interrupted during the proof; the run is kept; type: holdfast diagnose runs/demo-suffering"
    )
    assert process("diagnose", "runs/demo-suffering").returncode in (0, 1)


def steps_of(folder: Path, *, at_least: int) -> int:
    """Steps of a run that another process is writing, once there are enough."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            with Run(folder) as run:
                if run.steps >= at_least:
                    return run.steps
        except RunError:
            pass  # not there yet
        time.sleep(0.2)
    pytest.fail(f"no run with {at_least} steps in {folder}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "mnist"], "expected the folder that holds the files of mnist; got none; type: holdfast demo"),
        (["--data", "reviews", "gone"], "got 'gone', which does not exist; type: holdfast demo --data reviews DIR"),
        (["gone"], "expected no folder: digits come with scikit-learn; got 'gone'"),
        (["--report", "no/where.html"], "got 'no/where.html', which lies in a folder that does not exist"),
        (["--report", "."], "got '.', which is a folder"),
        (["--out", "taken", "--steps", "5"], "'taken'"),
    ],
)
def test_a_mistake_is_told_before_the_training(
    run: Callable[..., Result], tmp_path: Path, words: list[str], says: str
) -> None:
    (tmp_path / "taken").write_text("a file")
    result = run("demo", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_reviews_train_the_relu_network(run: Callable[..., Result], tmp_path: Path) -> None:
    for name, word in (("pos", "good"), ("neg", "bad")):
        lines = [f"{word} film number {number % 40} of the year" for number in range(260)]
        (tmp_path / f"rt-polarity.{name}").write_text("\n".join(lines))
    words = ["--steps", 20, "--variant", "healthy", "--proof-seeds", 0]
    result = run("demo", "--data", "reviews", tmp_path, *words)
    assert result.exit_code == 0, result.output
    assert "10 ReLU layers" in result.stdout
    assert "Prescription" not in result.stdout  # not asked for
    assert "film reviews, one sentence each, as bags of 47 words" in result.stdout


@pytest.mark.parametrize(
    ("kept", "line"),
    [
        ("insert-norm", "what was kept                     holdfast explain insert-norm"),
        (None, "what would answer it              holdfast explain reinitialise"),
    ],
)
def test_what_to_type_next_names_the_treatment_that_was_kept(kept: str | None, line: str) -> None:
    finding = Finding("poor-init", "critical", (Site("fc", "output"),), "first", (), treatments=("reinitialise",))
    diagnosis = Diagnosis("run", 10, "verdict", (finding,))
    console = Console(record=True, width=200)
    module._show_next(console, diagnosis, kept, folder=Path("run"), page=Path("page"), variant="dead")
    told = console.export_text()
    assert line in told
    assert ("reinitialise" in told) == (kept is None)


def test_a_run_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    wanted = tmp_path / "demo-dead"
    assert module.free_folder(wanted) == wanted
    for expected in ("demo-dead-2", "demo-dead-3"):
        module.free_folder(wanted).mkdir()
        assert module.free_folder(wanted).name == expected


def test_a_damaged_run_is_one_sentence(demo_folder: Path, process: Process, tmp_path: Path) -> None:
    shutil.copytree(demo_folder / "runs" / "demo-suffering", tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(b"\xa5" * 5000)
    done = process("report", "run", "-o", "x.html")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("holdfast: expected ")
    assert done.stderr.count("\n") == 1
