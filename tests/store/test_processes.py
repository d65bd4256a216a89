"""Real processes: killed, forked, stopped, in want of room, without rights."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast.store.reader import RunReader

SCRIPT = Path(__file__).with_name("processes.py")


@pytest.fixture(scope="module")
def processes():
    spec = importlib.util.spec_from_file_location("store_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start():
    """Start a job; whatever is left of it at the end of the test is ended."""
    with contextlib.ExitStack() as stack:

        def begin(job, folder, *more):
            process = subprocess.Popen(
                [sys.executable, str(SCRIPT), job, str(folder), *more],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin


def finish(process, status=0):
    out, err = process.communicate(timeout=200)
    assert process.returncode == status, err
    return out, err


def test_killed_25_times_no_acknowledged_step_is_lost(start, tmp_path):
    out, _ = finish(start("kill", tmp_path))
    turns = [json.loads(line) for line in out.splitlines()]
    assert len(turns) == 25
    assert sum(turn["acknowledged"] for turn in turns) > 25 * 12  # most were killed after a seal or more


def test_another_process_reads_while_it_is_written(start, tmp_path, processes):
    folder = tmp_path / "run"
    process = start("live", folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    seen = []
    with RunReader(folder) as run:
        while len(seen) < 12 or seen[-1] < 200:
            before = run.durable_step
            seen.append(processes.check(folder, before))
            assert run.durable_step >= seen[-1]
            time.sleep(0.02)
    (folder / "stop").touch()
    out, _ = finish(process)
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert processes.check(folder, int(out)) == int(out)


def test_a_forked_child_leaves_the_run_to_its_parent(start, tmp_path):
    out, _ = finish(start("fork", tmp_path / "run"))
    assert out == "199\n"


def test_a_script_that_ends_without_closing_loses_nothing(start, tmp_path, processes):
    begin = time.monotonic()
    finish(start("leave", tmp_path))
    assert processes.check(tmp_path, 50) == 50
    assert time.monotonic() - begin < 60


def test_ctrl_c_loses_nothing(start, tmp_path, processes):
    process = start("leave", tmp_path, "and wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGINT)
    _, err = finish(process, -signal.SIGINT)
    assert "KeyboardInterrupt" in err
    assert processes.check(tmp_path, 50) == 50


def test_a_full_disk_does_not_end_training_and_is_told_once(start, tmp_path):
    out, err = finish(start("cramped", tmp_path))
    said = json.loads(out)
    assert said["dropped"] > 0
    assert said["coarsened"] > 0
    assert said["kept"] == said["step"] - said["dropped"]
    assert said["full"] == said["step"] - said["dropped"] - said["coarsened"]
    assert "could not be written from step" in said["events"]["monitor-error"]
    assert f"{said['dropped']} were dropped" in said["events"]["coarsened"]
    assert err.count("the run cannot be written to") == 1
    assert err.count("\n") <= 2  # the warning and its line


def test_without_rights_runs_are_read_and_new_ones_refused(start, tmp_path):
    for place in (tmp_path, *(each for each in tmp_path.parents if "pytest-of-" in str(each))):
        place.chmod(0o755)
    out, _ = finish(start("unprivileged", tmp_path))
    said = json.loads(out)
    assert said.pop("refused") == [
        f"expected a folder that can be written, for the run; got '{tmp_path / name}' (Permission denied); "
        "name another: hf.watch(model, optimizer, run=FOLDER)"
        for name in ("new", "finished")
    ]
    assert said == {name: [30, 30] for name in ("finished", "running", "crashed")}
