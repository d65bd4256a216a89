"""The benchmark of whether auto keeps its budget: what it takes off and puts back, its estimate, and that it runs."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import holdfast as hf

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def budget(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("budget")


def test_overhead_is_time_in_all_over_time_in_all(budget):
    off = np.array([1.0, 3.0, 2.0, 5.0] * 50)  # the machine slows down and recovers
    found = budget.Found(1.01 * off, off, 4, {})
    assert found.overhead() == pytest.approx((1, 1, 1))
    assert found.step == pytest.approx(2.5 / 4)
    dear = off.copy()
    dear[7] += 11.0
    value, low, high = budget.Found(dear, off, 4, {}).overhead()
    assert value == pytest.approx(2)
    assert low == 0
    assert 4 < high < 8


def test_a_stop_of_the_machine_counts_where_it_may_be_ours_and_not_in_a_bare_block(budget):
    off = np.repeat([1.0, 4.0], 75)  # its pace is no stop
    stopped = off.copy()
    stopped[[10, 140]] = 50.0
    found = budget.Found(off, stopped, 4, {})
    assert len(found.calm) == 148
    assert found.overhead()[0] == pytest.approx(0)
    assert budget.Found(stopped, off, 4, {}).overhead()[0] == pytest.approx(100 * 95 / 375)


def test_nothing_of_a_watch_runs_while_it_is_off_and_all_of_it_after(budget, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    original = torch.autograd.backward

    def step():
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()

    with hf.watch(model, optimizer, run=tmp_path / "run", every=1, strict=True) as run:
        step()
        with budget.off(model, optimizer):
            assert torch.autograd.backward is original
            assert not any(budget.hook_tables(model, optimizer))
            step()
            assert run.steps == 1
        assert torch.autograd.backward is not original
        assert sum(map(len, budget.hook_tables(model, optimizer))) >= 10
        step()
        assert run.steps == 2
    assert torch.autograd.backward is original
    with hf.Run(tmp_path / "run") as run:
        assert run.history.values("loss")[0].tolist() == [1, 2]
        assert {step for step, _ in run.history.summaries(run.history.sites()[0])} == {1, 2}


def test_the_row_says_whether_the_bar_is_met(budget):
    off = np.ones(100)
    account = {"settled": 0.0093, "observed": 20, "probed": 11, "steps": 4000}
    told = budget.row("mlp3", "auto", budget.Found(1.009 * off, off, 10, account), 0.01)
    assert told.endswith("| 100.000 | 100 of 100 | +0.90 [+0.90, +0.90] | 1 met | 0.93 | 20 of 4000 | 11 of 4000 |")
    assert "**missed**" in budget.row("mlp3", "auto", budget.Found(1.02 * off, off, 10, account), 0.01)
    bare = budget.row("mlp3", "nothing", budget.Found(off, off, 10, {}), 0.01)
    assert bare.endswith("+0.00 [+0.00, +0.00] |  |  |  |  |")


@pytest.mark.slow
def test_everything_runs_once():
    command = [sys.executable, str(BENCHMARKS / "budget.py"), "--only", "mlp3", "--seconds", "2", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    rows = [row for row in done.stdout.splitlines() if row.startswith("| MLP")]
    assert [row.split(" | ")[1] for row in rows] == ["nothing", "auto"]
    assert "11 of" in rows[1]
