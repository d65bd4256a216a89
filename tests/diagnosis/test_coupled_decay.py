import dataclasses

import pytest
import torch
from torch import nn

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.coupled_decay import CoupledDecay


def _check(described, build, **settings):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    return CoupledDecay().check(described(model, optimizer=build(model.parameters(), lr=1e-3, **settings)))


@pytest.mark.parametrize("kind", ["Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop"])
def test_decay_through_an_adaptive_denominator_is_found(described, kind):
    (finding,) = _check(described, getattr(torch.optim, kind), weight_decay=0.01)
    assert finding.severity == "warning"
    assert finding.message == (
        f"{kind} adds weight decay 0.01 to the gradient of 4 parameters (23 elements) and divides it by the "
        "gradient's own size"
    )
    assert [site.label for site in finding.sites] == ["0.weight", "2.weight", "0.bias", "2.bias"]
    (reading,) = finding.evidence
    assert (reading.value, reading.unit, reading.n, reading.step) == (0.01, "setting", 4 * 3 + 3 + 3 * 2 + 2, 0)


@pytest.mark.parametrize(
    ("decay", "severity"), [(0.1, "warning"), (9e-3, "info"), (1e-5, "info"), (9e-6, None), (0.0, None)]
)
def test_severity_by_the_decay(described, decay, severity):
    found = _check(described, torch.optim.Adam, weight_decay=decay)
    assert [each.severity for each in found] == ([] if severity is None else [severity])


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("AdamW", {}),
        ("SGD", {"momentum": 0.9}),
        ("ASGD", {}),
        ("Adafactor", {}),
        ("Adam", {"decoupled_weight_decay": True}),
        ("RAdam", {"decoupled_weight_decay": True}),
    ],
)
def test_what_decays_the_weight_itself_is_well(described, kind, more):
    assert _check(described, getattr(torch.optim, kind), weight_decay=0.1, **more) == []


def test_the_worst_group_comes_first_and_frozen_parameters_do_not_count(described):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    groups = [
        {"params": list(model[0].parameters()), "weight_decay": 1e-4},
        {"params": list(model[1].parameters()), "weight_decay": 0.05},
        {"params": list(model[2].parameters()), "weight_decay": 0.5},
    ]
    (finding,) = CoupledDecay().check(described(model, optimizer=torch.optim.Adam(groups, lr=1e-3)))
    assert [(each.value, each.n) for each in finding.evidence] == [(0.05, 8), (1e-4, 15)]
    assert "weight decay 0.05 and 1.0e-04 to the gradient of 4 parameters (23 elements)" in finding.message
    assert finding.sites[0].module == "1"


def test_a_subclass_keeps_the_key_and_a_stranger_is_not_judged(described):
    class Mine(torch.optim.Adam):
        pass

    class Stranger(torch.optim.SGD):
        pass

    assert len(_check(described, Mine, weight_decay=0.1)) == 1
    answer = _check(described, Stranger, weight_decay=0.1)
    assert answer == Inconclusive(
        "coupled-decay", "whether Stranger decays weights through their gradients is not known here"
    )
    assert _check(described, Stranger, weight_decay=0.0) == []


@pytest.mark.parametrize(("settings", "coupled"), [({"amsgrad": False}, True), ({}, None)])
def test_an_adam_without_the_key_is_that_of_an_old_torch_or_a_stranger(described, settings, coupled):
    model = nn.Linear(4, 3)
    run = described(model, optimizer=torch.optim.Adam(model.parameters(), weight_decay=0.1))
    structure = run.structure()
    group = dataclasses.replace(structure.groups[0], settings={"weight_decay": 0.1, **settings})
    run.describe(dataclasses.replace(structure, groups=(group,)))
    answer = CoupledDecay().check(run)
    assert isinstance(answer, Inconclusive) if coupled is None else len(answer) == 1


@pytest.mark.parametrize("decay", ["nan", "inf", None, -0.1, True])
def test_odd_settings_crash_nothing(described, decay):
    model = nn.Linear(4, 3)
    run = described(model, optimizer=torch.optim.Adam(model.parameters()))
    structure = run.structure()
    group = dataclasses.replace(structure.groups[0], settings={"weight_decay": decay})
    run.describe(dataclasses.replace(structure, groups=(group,)))
    assert CoupledDecay().check(run) == []


def test_without_an_optimiser_nothing_is_said(described):
    answer = CoupledDecay().check(described(nn.Linear(2, 2)))
    assert answer == Inconclusive("coupled-decay", "no optimiser was given")
