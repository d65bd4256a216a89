"""The benchmark of what a watch costs: its estimates, its picture, what it compares, and that all of it runs."""

import importlib
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def overhead(load):
    return load("overhead")


def test_overhead_is_the_ratio_to_the_bare_block_of_the_same_round(overhead):
    bare = np.array([1.0, 3.0, 2.0, 5.0])  # the machine slows down and recovers
    for total in (False, True):
        assert overhead.overhead(1.1 * bare, bare, total=total) == pytest.approx((10, 10, 10))


def test_rare_dear_blocks_show_in_the_sum_and_not_in_the_median(overhead):
    bare = np.ones(11)
    auto = bare.copy()
    auto[3] = 12.0
    assert overhead.overhead(auto, bare, total=False)[0] == 0
    value, low, high = overhead.overhead(auto, bare, total=True)
    assert value == pytest.approx(100)
    assert low == 0
    assert high > 200


def test_a_bar_on_auto_holds_for_the_interval_too(overhead):
    assert overhead.judged(1.0, 0.8, 0.9, 1.4, "auto") == "1 met"
    assert overhead.judged(1.0, 0.8, 0.9, 1.6, "auto") == "1 not resolved"
    assert overhead.judged(3.0, 2.0, 2.9, 9.0, "every step") == "3 met"
    assert overhead.judged(3.0, 2.9, 3.1, 3.2, "every step") == "3 not resolved"
    assert "missed" in overhead.judged(3.0, 3.1, 3.2, 3.3, "every step")
    assert overhead.judged(None, 1.0, 1.0, 1.0, "wandb") == ""


def test_every_arm_is_a_monitor_and_every_bar_has_its_arm(overhead, load):
    assert {*overhead.ARMS, *overhead.GROWING} == set(load("parts.monitors").MONITORS)
    assert {arm for _, arm in overhead.BARS} <= set(overhead.ARMS)


def test_a_missing_peer_is_skipped_with_its_reason(overhead, monkeypatch, capsys):
    monkeypatch.setattr(overhead, "PEERS", {"by hand": None, "TensorBoard": "no_such_package"})
    assert overhead.available(["bare", "by hand", "TensorBoard"]) == ["bare", "by hand"]
    assert "TensorBoard: the package no_such_package is not installed" in capsys.readouterr().out


def test_monitor_by_hand_reads_what_it_says_and_leaves_no_hook(load, tmp_path):
    monitors = load("parts.monitors")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    x = torch.randn(8, 3)
    told = []
    with monitors.by_hand(net, torch.optim.SGD(net.parameters(), 0.1), x, tmp_path, told=told.append) as attached:
        entered, output = net[0](x), net(x)
        loss = output.square().sum()
        loss.backward()
        attached.after(loss)
    (seen,) = told
    assert seen["1"] == pytest.approx(
        (output.mean().item(), output.var().item(), output.max().item(), (output == 0).sum().item() / 32)
    )
    assert seen["0"] == pytest.approx((entered.mean().item(), entered.var().item(), entered.abs().max().item(), 0))
    gradient = net[0].weight.grad
    assert seen["0.weight.grad"] == pytest.approx((gradient.mean().item(), gradient.var().item()))
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("key", ["mlp3", "mlp10", "gpt", "layers-30", "width-64", "batch-8"])
def test_workloads_have_the_size_they_are_named_by(load, key):
    workload = load("parts.workloads").workload(key)
    net, (inputs, labels) = workload.build(), workload.batches()[0]
    logits = net(inputs).flatten(0, -2)
    assert logits.shape == (len(labels), workload.classes)
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == {"mlp3": 3, "gpt": 17, "layers-30": 30}.get(key, 10)
    sizes = {"mlp3": (64, 784), "mlp10": (128, 256), "gpt": (16, 64), "layers-30": (32, 32), "width-64": (128, 64)}
    assert tuple(inputs.shape) == sizes.get(key, (8, 256))


def test_picture_is_valid_and_its_marks_lie_on_a_logarithmic_axis(load):
    names = ["a & b", "c"]
    dots = {
        "auto": {names[0]: (0.01, -1.0, 0.5), names[1]: (1.0, 0.5, 2.0)},
        "by hand": {names[1]: (100.0, 90.0, 110.0)},
    }
    series = {"layers": {"auto": [(10, 0.5), (1000, 1.0)], "every step": [(10, 20.0), (1000, 300.0)]}}
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(load("parts.picture").picture(dots, series))
    words = {each.text for each in root.iter(f"{svg}text")}
    assert {"a & b", "c", "auto", "by hand", "layers", "every step", "0.1", "1,000"} <= words
    marks = list(root.iter(f"{svg}circle"))[2:5]  # after those of the key
    hollow, one, hundred = (float(mark.get("cx")) for mark in marks)
    assert (hundred - one) / (one - hollow) == pytest.approx(2, abs=0.01)  # two decades beyond one
    assert [mark.get("fill") for mark in marks].count("#ffffff") == 1
    width, height = float(root.get("width")), float(root.get("height"))
    for mark in root.iter(f"{svg}circle"):
        assert 0 < float(mark.get("cx")) < width
        assert 0 < float(mark.get("cy")) < height
    assert not any(math.isnan(float(mark.get("cy"))) for mark in marks)


def test_written_table_holds_every_arm_and_points_to_the_picture(overhead, tmp_path):
    def measured(share, steps=None):
        return overhead.Measured(np.full(5, 1 + share), np.ones(5), int((1 + share) * 100e6), steps)

    found = {
        "mlp10": {
            "bare": measured(0.0),
            "libraries only": measured(0.3),
            "auto": measured(0.005, (1000, 10, 5)),
            "every step": measured(0.4, (50, 50, 0)),
            "wandb": measured(5.0),
        }
    }
    series = {"layers": {"auto": [(10, 0.5)], "every step": [(10, 20.0)]}}
    overhead.write(tmp_path, "somewhere", overhead.table("mlp10", found["mlp10"]), ["growth"], found, series)
    table = (tmp_path / "overhead.md").read_text()
    assert "| auto | 1005.000 | +0.5 [+0.5, +0.5] | 1 met | 1 in 100, 1 in 200 | 100 | +0 | -30 (-29.5 %) |" in table
    assert "| every step | 1400.000 | +40.0 [+40.0, +40.0] | 15 **missed** | 1 in 1, none |" in table
    assert "| wandb | 6000.000 | +500.0 [+500.0, +500.0] |" in table
    assert "(overhead.svg)" in table
    ElementTree.fromstring((tmp_path / "overhead.svg").read_text())


@pytest.mark.slow
def test_everything_runs_once():
    command = [
        sys.executable,
        str(BENCHMARKS / "overhead.py"),
        "--quick",
        "--only",
        "mlp3",
        "--growth",
        "--threads",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row.split(" | ")[0].removeprefix("| "): row for row in done.stdout.splitlines() if row.startswith("| ")}
    for arm in ("bare", "bare, again", "libraries only", "auto", "every step", "every step, exact", "by hand"):
        assert arm in rows, done.stdout
    assert "| 1 in 1, 1 in" in rows["every step"]
    grown = [row for row in done.stdout.splitlines() if "batch of 10 layers" in row]
    assert len(grown) == 2, done.stdout
    for arm in ("TensorBoard", "wandb"):
        assert arm in rows or f"skipped {arm}" in done.stdout
