import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import holdfast as hf
from holdfast.core.errors import InputError, RunError, WatchError


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs = torch.randn(32, 6, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), (inputs[:, 0] > 0).long()).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hf.watch(model, optimizer, run=folder, probe=torch.randn(32, 6), every=2, strict=True):
        train(model, optimizer, 30)
    return folder


@pytest.fixture
def recorded(trained: Path, tmp_path: Path) -> Path:
    """A run that a test may write to."""
    return shutil.copytree(trained, tmp_path / "run")


def test_a_run_is_read_back(recorded):
    with hf.Run(recorded) as run:
        assert run.steps == 30
        assert run.durable_step == 30
        assert run.path == recorded
        assert not run.history.events("monitor-error")
        steps, losses = run.history.values("loss")
        assert steps.tolist() == list(range(1, 31))
        assert np.isfinite(losses).all()
        structure = run.history.structure()
        assert structure is not None
        assert structure.order == ("0", "1", "2", "3", "4")
        drift = run.history.readings("parameter-drift", lag=1)
        assert {each.site.phase for each in drift} == {"train", "probe"}
        assert all(each.n == 32 and each.noise_floor is not None and each.unit == "reference SD" for each in drift)


def test_the_frame_is_tidy(recorded):
    frame = hf.Run(recorded).frame()
    assert list(frame.columns) == [
        "step", "stream", "module", "port", "leaf", "call", "phase", "measure", "lag", "value", "low", "high",
        "noise_floor", "n", "unit", "site",
    ]  # fmt: skip
    assert (frame.measure == "loss").sum() == 30
    drift = frame[(frame.measure == "parameter-drift") & (frame.phase == "train") & (frame.module == "4")]
    assert (drift.unit == "reference SD").all()
    assert (drift.low <= drift.value).all()
    assert (drift.value <= drift.high).all()


def test_a_diagnosis_of_a_run_of_its_folder_and_of_its_history_is_one(recorded):
    run = hf.Run(recorded)
    first = hf.diagnose(run).as_dict()
    assert first == hf.diagnose(recorded).as_dict() == hf.diagnose(str(recorded)).as_dict()
    assert first == hf.diagnose(run.history).as_dict() == run.diagnose().as_dict()
    assert set(first) == {"run", "steps", "verdict", "findings", "inconclusive", "not_seen"}
    json.dumps(first, allow_nan=False)


def test_a_report_is_written(recorded, tmp_path):
    path = hf.Run(recorded).report(tmp_path / "page.html")
    text = path.read_text()
    assert "<script src" not in text
    assert "parameter drift" in text.lower()


def test_a_live_run_can_be_read_while_it_grows(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = hf.watch(model, optimizer, run=tmp_path / "run", every=1)
    train(model, optimizer, 5)
    assert run.steps == 5
    assert run.durable_step <= 5
    run.close()
    assert run.durable_step == 5
    assert run.history.steps == 5
    run.close()


def test_a_second_run_in_a_folder_is_a_new_attempt(recorded):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hf.watch(model, optimizer, run=recorded):
        train(model, optimizer, 3)
    assert hf.Run(recorded).steps == 3


def test_a_live_run_stays_itself_when_another_begins_in_its_folder(tmp_path):
    runs = []
    for steps in (5, 9):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        runs.append((hf.watch(model, optimizer, run=tmp_path / "run", every=1), model, optimizer))
        train(model, optimizer, steps)
    for (run, _, _), steps in zip(runs, (5, 9), strict=True):
        run.close()
        assert run.steps == run.history.steps == steps
        assert len(run.history.values("loss")[1]) == steps


def test_a_script_that_never_closes_loses_no_step(tmp_path):
    process = python(
        LOOP
        + """
    run = hf.watch(model, optimizer, run="run", every=10)
    for _ in range(25):
        step()
""",
        tmp_path,
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    with hf.Run(tmp_path / "run") as run:
        assert run.steps == 25
        assert run.history.events("cadence")


def test_a_watch_that_is_refused_leaves_no_folder(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(WatchError, match="a probe that the model's forward accepts"):
        hf.watch(model, optimizer, run=tmp_path / "run", probe=torch.randn(2, 5))
    assert not (tmp_path / "run").exists()
    with hf.watch(model, optimizer, run=tmp_path / "first"), pytest.raises(WatchError, match=r"first' watches already"):
        hf.watch(model, optimizer, run=tmp_path / "second")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("what", ["missing", "empty", "random bytes", "truncated", "newer"])
def test_a_folder_without_a_readable_run(recorded, tmp_path, what):
    folder = recorded
    (database,) = recorded.glob("*.sqlite")
    if what == "missing":
        folder = tmp_path / "nowhere"
    elif what == "empty":
        folder = tmp_path / "empty"
        folder.mkdir()
    elif what == "random bytes":
        database.write_bytes(np.random.default_rng(0).bytes(5000))
    elif what == "truncated":
        database.write_bytes(database.read_bytes()[:700])
    else:
        import sqlite3

        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA user_version = 999")
        connection.close()
    with pytest.raises(RunError) as caught:
        hf.diagnose(folder)
    sentence = str(caught.value)
    assert sentence.startswith("expected ")
    assert "; got " in sentence
    assert "\n" not in sentence


def test_explain_knows_every_family_and_suggests(monkeypatch):
    for name in ("shifting-input", "parameter-drift", "insert-norm"):
        assert len(hf.explain(name)) > 200
    with pytest.raises(InputError, match="type: holdfast explain shifting-input"):
        hf.explain("shiftin-input")


def test_nan_in_the_data_becomes_the_first_finding(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hf.watch(model, optimizer, run=tmp_path / "run", every=1) as run:
        train(model, optimizer, 3)
        optimizer.zero_grad()
        F.cross_entropy(model(torch.full((4, 6), torch.nan)), torch.zeros(4, dtype=torch.long)).backward()
        optimizer.step()
        train(model, optimizer, 3)
    diagnosis = hf.diagnose(run)
    assert diagnosis.findings[0].rule == "nonfinite"
    assert diagnosis.findings[0].severity == "critical"
    assert (tmp_path / "run" / "batch-4.npz").exists()
    json.dumps(diagnosis.as_dict(), allow_nan=False)
    assert math.isnan(run.history.values("loss")[1][3])
    assert run.report(tmp_path / "page.html").exists()


def python(source: str, folder: Path, **options: object) -> subprocess.Popen[str]:
    """A fresh interpreter without the tests' type checks, as a user has it."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(source))
    return subprocess.Popen(
        [sys.executable, str(script)], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


LOOP = """
    import torch, holdfast as hf
    from torch import nn
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    def step():
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
"""


def test_ctrl_c_in_the_middle_of_training_loses_nothing_durable(tmp_path):
    process = python(
        LOOP
        + """
    import sys
    run = hf.watch(model, optimizer, run="run", every=3)
    while True:
        step()
        if run.durable_step >= 50:
            print(run.durable_step, flush=True)
""",
        tmp_path,
    )
    assert process.stdout is not None
    durable = int(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    last = max([durable, *map(int, out.split())])
    with hf.Run(tmp_path / "run") as run:
        steps, _ = run.history.values("loss")
        assert run.steps >= last
        assert steps.tolist() == list(range(1, run.steps + 1))


def test_an_exception_ends_the_watch_and_keeps_the_run(tmp_path):
    process = python(
        LOOP
        + """
    try:
        with hf.watch(model, optimizer, run="run", every=1):
            for _ in range(7):
                step()
            raise ValueError("mine")
    except ValueError:
        print(sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules()))
""",
        tmp_path,
    )
    out, errors = process.communicate(timeout=60)
    assert (out.strip(), process.returncode) == ("0", 0), errors
    with hf.Run(tmp_path / "run") as run:
        assert run.steps == 7


def test_a_read_only_disk_is_said_before_training_starts(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RunError, match=r"expected a .*writ"):
        hf.watch(model, optimizer, run=tmp_path / "file" / "run")
    train(model, optimizer, 2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_full_disk_in_the_middle_of_training_does_not_stop_it(tmp_path):
    process = python(
        LOOP
        + """
    import resource, signal, warnings
    warnings.simplefilter("always")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails, as on a full disk
    run = hf.watch(model, optimizer, run="run", every=1, probe=torch.randn(8, 6))
    step()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, resource.RLIM_INFINITY))
    for _ in range(300):
        step()
    run.close()
    print("trained", sum(each.numel() for each in model.parameters()))
""",
        tmp_path,
    )
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert out.startswith("trained")
    with hf.Run(tmp_path / "run") as run:
        assert run.durable_step >= 1
    assert "holdfast" in errors


def test_forked_workers_and_importing_stay_out_of_the_way(tmp_path):
    process = python(
        LOOP
        + """
    from torch.utils.data import DataLoader, TensorDataset
    data = TensorDataset(torch.randn(64, 6))
    with hf.watch(model, optimizer, run="run", every=1, mode="exact") as run:
        for (batch,) in DataLoader(data, batch_size=8, num_workers=2):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    print(run.steps)
""",
        tmp_path,
    )
    out, errors = process.communicate(timeout=120)
    assert (out.strip(), process.returncode) == ("8", 0), errors


def test_importing_loads_nothing_heavy(tmp_path):
    process = python(
        "import sys, holdfast\n"
        "heavy = ('numba', 'scipy.stats', 'plotly', 'pandas', 'sklearn', 'curvlinops')\n"
        "print([name for name in heavy if name in sys.modules])",
        tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    out, errors = process.communicate(timeout=60)
    assert out.strip() == "[]", errors
