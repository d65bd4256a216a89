"""Scripts as users write them (`tests/scripts`), under plain `python` and under `holdfast run`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner, Result

from holdfast.cli.app import app
from holdfast.store.reader import RunReader

SCRIPTS = Path(__file__).parents[1] / "scripts"
PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

Environment = Callable[..., dict[str, str]]


class Both(NamedTuple):
    """What came of a script in two processes, the second one watched."""

    plain: subprocess.CompletedProcess[bytes]
    watched: subprocess.CompletedProcess[bytes]
    folder: Path

    @property
    def said(self) -> str:
        """What Holdfast said, behind what the script itself wrote to stderr."""
        assert self.watched.stderr.startswith(self.plain.stderr)
        return self.watched.stderr.decode()[len(self.plain.stderr.decode()) :]

    def is_the_same(self, code: int = 0) -> None:
        """Output and exit code are the script's own, byte for byte."""
        assert (self.watched.returncode, self.watched.stdout) == (self.plain.returncode, self.plain.stdout)
        assert self.plain.returncode == code, self.plain.stderr.decode()

    def history(self, rank: int = 0) -> RunReader:
        return RunReader(self.folder / "runs" / "it", rank=rank)


@pytest.fixture
def both(tmp_path: Path, environment: Environment) -> Callable[..., Both]:
    """`both("plain.py", "--lr", "1")`: the script plainly and watched, each in an empty folder of its own."""

    def run(*words: str, launcher: Sequence[str] = PYTHON, options: Sequence[str] = ()) -> Both:
        ours = [*launcher, "-m", "holdfast", "run", "--out", "runs/it", *options]
        started = []
        for name, command in (("plain", launcher), ("watched", ours)):
            (tmp_path / name).mkdir()
            started.append(
                subprocess.Popen(
                    [*command, *(str(SCRIPTS / word) if word.endswith(".py") else word for word in words)],
                    cwd=SCRIPTS if "-m" in words else tmp_path / name,
                    env=environment(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    # A shell that runs the tests in the background has Ctrl-C ignored, and its children inherit that.
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
                )
            )
        done = []
        for process in started:
            out, err = process.communicate(timeout=240)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
        return Both(done[0], done[1], tmp_path / "watched")

    return run


def test_a_plain_loop_is_watched_and_stays_bit_for_bit_what_it_was(both: Callable[..., Both]) -> None:
    seen = both("plain.py")
    seen.is_the_same()
    assert "Holdfast watched 25 steps" in seen.said
    assert "Verdict  " in seen.said
    assert "\nobserved 6 of 25 steps" in seen.said
    assert "asked at most 1.0% of the bare run, took " in seen.said
    assert seen.said.endswith("Next: holdfast report runs/it\n")
    with seen.history() as run:
        assert run.streams() == ["net"]
        assert run.steps == 25
        assert run.values("loss")[0].size == 25
        structure = run.structure()
        assert structure is not None
        assert structure.order
        drifts = run.readings("parameter-drift")
        # The fixed probe was cut out of the first batch, which has fewer samples than were asked for.
        assert {each.n for each in drifts if each.site.phase == "probe"} == {32}
        assert not run.events("monitor-error")


def test_an_exception_ends_it_with_the_traceback_of_plain_python(both: Callable[..., Both]) -> None:
    seen = both("endings.py", "raise", "--out", "x")
    seen.is_the_same(1)
    assert b"During handling" not in seen.plain.stderr
    assert b"The above exception was the direct cause" in seen.plain.stderr
    assert "holdfast/" not in seen.watched.stderr.decode().replace("holdfast report", "")
    assert "Holdfast watched 3 steps" in seen.said


def test_a_script_without_torch_finds_none_loaded_and_leaves_no_folder(both: Callable[..., Both]) -> None:
    seen = both("untrained.py", "--size", "5")
    seen.is_the_same()
    assert seen.said == "holdfast: nothing was recorded: the script did not import torch\n"
    assert os.listdir(seen.folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("exit", 3),
        ("message", 1),
        ("optimizer", 1),
        ("backward", 1),
        ("hook", 1),
        ("interrupt", -signal.SIGINT),
        ("kill", 5),
    ],
)
def test_each_way_to_end_is_the_scripts_own(both: Callable[..., Both], ending: str, code: int) -> None:
    seen = both("endings.py", ending)
    seen.is_the_same(code)
    assert ("Holdfast watched 3 steps" in seen.said) == (ending != "kill")


@pytest.mark.slow
def test_never_training_is_said_in_one_sentence(both: Callable[..., Both]) -> None:
    seen = both("untrained.py", "--torch")
    seen.is_the_same()
    assert seen.said == "holdfast: nothing was recorded: no optimiser made a step\n"
    assert os.listdir(seen.folder) == []


@pytest.mark.slow
def test_a_closure_continues_what_another_optimiser_began(both: Callable[..., Both]) -> None:
    seen = both("closure.py")
    seen.is_the_same()
    with seen.history() as run:
        assert run.streams() == ["net"]
        assert run.steps == 11
        assert run.values("loss")[0].tolist() == list(range(1, 12))
        # Adam's rate, then that of LBFGS.
        assert run.values("learning-rate")[1].tolist() == pytest.approx([0.01] * 5 + [0.8] * 6)


@pytest.mark.slow
def test_the_models_of_a_gan_are_two_streams_of_one_run(both: Callable[..., Both]) -> None:
    seen = both("gan.py")
    seen.is_the_same()
    assert "Holdfast watched 22 steps of Discriminator, Generator\n" in seen.said
    assert "\nGenerator: observed 6 of 22 steps" in seen.said
    losses = [line.split() for line in seen.plain.stdout.decode().splitlines()[:-1]]
    with seen.history() as run:
        assert run.streams() == ["Discriminator", "Generator"]
        for name, place in (("Discriminator", 2), ("Generator", 4)):
            found = run.values("loss", name)[1].tolist()
            assert found == pytest.approx([float(line[place]) for line in losses], abs=1e-4)
            structure = run.structure(name)
            assert structure is not None
            assert structure.model == name
        assert not run.events("monitor-error")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loaders_with_workers_arguments_and_files(both: Callable[..., Both], method: str) -> None:
    seen = both("loaders.py", "--start-method", method, "--epochs", "2", "--out", "own.pt", options=["--every", "1"])
    seen.is_the_same()
    assert sorted(os.listdir(seen.folder)) == ["own.pt", "runs", "whole.pt"]
    with seen.history() as run:
        assert run.steps == 6
        assert not run.events("monitor-error")
        assert run.sites(phase="eval")


@pytest.mark.slow
def test_accumulation_under_autocast(both: Callable[..., Both]) -> None:
    seen = both("accumulation.py", options=["--every", "2"])
    seen.is_the_same()
    assert seen.plain.stdout.splitlines()[-1].startswith(b"1 ")  # the threads that the script asked for
    with seen.history() as run:
        assert run.steps == 12
        assert not run.events("monitor-error")
        # `idx` and `targets`, both with the samples on axis 0
        assert any(each.site.phase == "probe" for each in run.readings("parameter-drift"))


@pytest.mark.slow
def test_a_second_model_is_a_second_stream(both: Callable[..., Both]) -> None:
    seen = both("twice.py")
    seen.is_the_same()
    with seen.history() as run:
        assert run.streams() == ["net", "Encoder"]
        assert [run.values("loss", name)[0].size for name in run.streams()] == [12, 12]


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_module_of_a_package(both: Callable[..., Both], tmp_path: Path, fails: bool) -> None:
    options = ["--out", str(tmp_path / "run")]
    words = ["package.fit", "--lr", "0.1", "-m", *(["--fail"] if fails else [])]
    # The last options count: those of `both` name a folder beside the scripts.
    seen = both("-m", *words, options=options)
    seen.is_the_same(int(fails))
    with RunReader(tmp_path / "run") as run:
        assert run.steps == 10


@pytest.mark.slow
def test_torchrun_starts_it_in_every_process(both: Callable[..., Both]) -> None:
    seen = both("distributed.py", launcher=TORCHRUN)
    seen.is_the_same()
    assert seen.said.count("Holdfast watched") == 1
    for rank in (0, 1):
        with seen.history(rank) as run:
            assert run.steps == 12
            assert run.attempts == [1]


@pytest.mark.slow
def test_children_of_spawn_are_watched(both: Callable[..., Both]) -> None:
    seen = both("spawned.py")
    seen.is_the_same()
    assert seen.said.count("Holdfast watched 8 steps") == 1
    for rank in (0, 1):
        with seen.history(rank) as run:
            assert run.steps == 8


@pytest.mark.slow
def test_a_folder_that_breaks_after_the_check_is_one_warning(
    tmp_path: Path, environment: Environment, command: list[str]
) -> None:
    script = tmp_path / "breaks.py"
    script.write_text(
        "from pathlib import Path\nPath('runs').write_text('in the way')\n" + (SCRIPTS / "plain.py").read_text()
    )
    done = subprocess.run(
        [*command, "run", str(script)],
        cwd=tmp_path,
        env=environment(PYTHONPATH=os.pathsep.join([str(SCRIPTS), os.environ.get("PYTHONPATH", "")])),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4
    assert done.stderr.count("RunError") == 1
    assert done.stderr.count("holdfast:") == 2  # the warning, and that nothing was recorded


# What the command line takes; nothing is run here.


class Taken(NamedTuple):
    result: Result
    launches: list[partial[None]]


def parse(*words: str) -> Taken:
    launches: list[partial[None]] = []
    return Taken(CliRunner().invoke(app, ["run", *words], obj=launches), launches)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    (tmp_path / "sub").mkdir()
    return tmp_path / "train.py"


@pytest.mark.usefixtures("script")
def test_a_script_is_launched_outside_of_the_command_line() -> None:
    taken = parse("--budget", "0.05", "--every", "3", "--probe", "0", "train.py", "--help", "--out", "x", "--", "")
    assert taken.result.exit_code == 0, taken.result.output
    (launch,) = taken.launches
    program, options = launch.args[:2]
    assert program.arguments == ["--help", "--out", "x", "--", ""]
    assert (options.budget, options.every, options.probe) == (0.05, 3, 0)
    assert options.folder == Path.cwd() / "runs" / "train"
    assert not Path("runs").exists()


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gone.py"], "expected a Python script to run; got 'gone.py', which does not exist; type: holdfast run"),
        (["sub"], "expected a Python script to run; got 'sub', which is not a file; type: holdfast run"),
        (["-m", "no_such.module"], "expected a module to run; got -m no_such.module, which is not found; type: "),
        (["-m", "json.no_such"], "expected a module to run; got -m json.no_such, which is not found; type: "),
        (["--budget", "0", "train.py"], "expected a budget above 0 and at most 1; got --budget 0.0; type: --budget"),
        (["--budget", "1.5", "train.py"], "expected a budget above 0 and at most 1; got --budget 1.5; type: --budget"),
        (["--every", "0", "train.py"], "expected --every auto or a whole number of steps ≥ 1; got --every 0; type: "),
        (["--every", "x", "train.py"], "expected --every auto or a whole number of steps ≥ 1; got --every x; type: "),
        (["--probe", "-1", "train.py"], "expected a number of samples ≥ 0; got --probe -1; type: --probe 64"),
        (["--out", "train.py/x", "train.py"], "expected a folder that can be written, for the run; got --out train.py"),
        (["--out", "/proc/x/y", "train.py"], "expected a folder that can be written, for the run; got --out /proc/x/y"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], sentence: str) -> None:
    taken = parse(*words)
    assert (taken.result.exit_code, taken.result.stdout, taken.launches) == (2, "", [])
    assert taken.result.stderr.startswith(f"holdfast: {sentence}")
    assert taken.result.stderr.count("\n") == 1


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize("words", [[], ["-m"], ["--budget", "much", "train.py"], ["--unknown", "train.py"]])
def test_a_wrong_word_is_a_usage_error(words: list[str]) -> None:
    taken = parse(*words)
    assert (taken.result.exit_code, taken.launches) == (2, [])
