from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.core.reading import Table
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.diagnosis.culprits import culprits
from holdfast.diagnosis.shifting_input import ShiftingInput
from holdfast.measures.attribution import TABLES
from holdfast.store.memory import MemoryRun

WORST = Site("head", "input")


def apart(run: MemoryRun, step: int, joint: float = 1.0, floor: float = 0.01, **effects: float) -> None:
    """One update taken apart at the head's input: the effect of each layer as a part of `joint`."""
    rest = 1.0 - sum(effects.values())
    values = [joint * each for each in (*effects.values(), 1.0, rest)]
    columns = (*effects, "all", "interaction")
    for name, row in zip(TABLES, (values, [abs(each) for each in values], [floor] * len(values)), strict=True):
        table = Table(name, step, Unit.REFERENCE_SD, (str(WORST),), columns, (tuple(row),), 64)
        run.write(StepRecord(step, tables=(table,)))


@pytest.fixture
def run():
    return MemoryRun()


def test_one_layer_is_named_with_its_part_and_its_reading(run):
    for step, share in ((1, 0.9), (2, 0.7), (3, 0.8)):
        apart(run, step, joint=2.0, a=share, b=1 - share)
    found = culprits(run, WORST)
    assert found.words == (
        "the update of 'a' alone makes 80 % of the shift ('b' 20 %) (median of 3 updates taken apart)"
    )
    (a, b) = found.evidence
    assert (a.measure, a.site, a.step, a.n, a.lag) == ("attribution", Site("a", "update"), 3, 64, 1)
    assert a.value == pytest.approx(1.6)
    assert (a.noise_floor, a.unit) == (0.01, Unit.REFERENCE_SD)
    assert b.site == Site("b", "update")


def test_a_part_that_is_shared_has_no_culprit(run):
    apart(run, 1, a=0.35, b=0.3, c=0.25, d=0.1)
    words = "no one layer makes most of the shift: 'a' 35 %, 'b' 30 %, 'c' 25 % by updates of their own"
    assert culprits(run, WORST).words == f"{words} (one update taken apart)"


def test_an_interaction_that_is_greater_than_any_part_leaves_no_culprit(run):
    apart(run, 1, a=0.3, b=0.1)
    words = "no layer makes the shift alone: 'a' 30 %, 'b' 10 % by updates of their own, their interaction 60 %"
    assert culprits(run, WORST).words.startswith(words)
    run = MemoryRun()
    apart(run, 1, a=0.9, b=0.9)  # −80 %
    assert "alone makes 90 % of the shift ('b' 90 %); their interaction −80 %" in culprits(run, WORST).words
    run = MemoryRun()
    apart(run, 1, a=1.3, b=1.2)  # −150 %
    assert "no layer makes the shift alone" in culprits(run, WORST).words
    assert "interaction −150 %" in culprits(run, WORST).words


def test_updates_that_work_against_each_other_are_both_told(run):
    apart(run, 1, a=1.8, b=-0.75)
    found = culprits(run, WORST)
    assert found.words.startswith("the update of 'a' alone makes 180 % of the shift; against it 'b' −75 %")
    assert [each.value for each in found.evidence] == pytest.approx([1.8, -0.75])


def test_parts_within_noise_are_not_named(run):
    apart(run, 1, floor=0.5, a=0.4, b=0.3, c=0.3)
    found = culprits(run, WORST)
    assert found.words.startswith(
        "no layer's update alone makes a part of the shift above noise; their interaction 0 %"
    )
    assert found.evidence == ()


def test_steps_without_a_shift_and_sites_not_seen_tell_nothing(run):
    apart(run, 1, joint=0.005, a=1.0)
    assert culprits(run, WORST).words == ""
    apart(run, 2, joint=math.nan, a=1.0)
    assert culprits(run, WORST).words == ""
    apart(run, 3, a=1.0)
    assert culprits(run, WORST.at(phase="probe")).words.endswith("(one update taken apart)")
    assert culprits(run, Site("other", "input")).words == ""
    assert culprits(run, WORST.at(stream="other")).words == ""


def test_the_finding_names_the_culprit_beside_the_drift(script):
    run = script().drift("early", [0.1] * 6).drift("head", [0.5] * 6).history
    (bare,) = ShiftingInput().check(run)
    assert "taken apart" not in bare.message
    apart(run, 3, joint=0.5, stem=0.9, body=0.1)
    (finding,) = ShiftingInput().check(run)
    assert finding.message.startswith(bare.message)
    assert "; step by step, at 'head', the update of 'stem' alone makes 90 % of the shift" in finding.message
    assert finding.sites == bare.sites
    assert finding.evidence[:2] == bare.evidence
    assert [each.site.module for each in finding.evidence[2:]] == ["stem", "body"]


def test_a_layer_of_a_real_network_that_is_given_a_hundredfold_rate_is_the_culprit(tmp_path):
    """Four layers under one optimiser, the second with a rate of its own."""
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(16, 16), nn.Tanh())), nn.Linear(16, 4))
    named = dict(net.named_parameters())
    fast = [named.pop("2.weight"), named.pop("2.bias")]
    optimizer = torch.optim.SGD([{"params": list(named.values())}, {"params": fast, "lr": 3.0}], 0.03)
    x, y = torch.randn(64, 16) + 0.5, torch.randint(4, (64,))
    with hf.watch(net, optimizer, run=tmp_path / "run", every=1, measures=["attribution"], strict=True):
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    run = hf.Run(tmp_path / "run").history
    (finding,) = ShiftingInput(per_step=(1e-4, 1.0, 10.0)).check(run)
    culprit = next(each for each in finding.evidence if each.measure == "attribution")
    assert culprit.site == Site("2", "update")
    assert culprit.above_noise
    assert "the update of '2' alone makes " in finding.message
    assert " updates taken apart)" in finding.message
