import dataclasses

import pytest
import torch
from torch import nn

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.decayed_gain import DecayedGain


def _network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8))


def _check(described, optimizer, **settings):
    model = _network()
    return DecayedGain().check(described(model, optimizer=optimizer(model.parameters(), **settings)))


@pytest.mark.parametrize(
    ("optimizer", "settings", "severity", "pull"),
    [
        (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.2}, "warning", 2e-3),
        (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.01}, "info", 1e-5),
        (torch.optim.AdamW, {"lr": 1e-5, "weight_decay": 0.01}, None, 1e-7),
        (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.2, "decoupled_weight_decay": True}, "warning", 2e-3),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}, "info", 1e-4),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-3}, "warning", 2e-3),
        (torch.optim.SGD, {"lr": 0.1, "weight_decay": 2e-3}, "info", 2e-4),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, None, 0.0),
    ],
)
def test_fires_by_what_a_step_takes_off(described, optimizer, settings, severity, pull):
    found = _check(described, optimizer, **settings)
    assert [each.severity for each in found] == ([] if severity is None else [severity])
    for finding in found:
        first, second = finding.evidence
        assert first.value == pytest.approx(pull)
        assert (first.unit, first.n, second.value) == ("fraction", 32, settings["weight_decay"])
        assert "gains or shifts of 2 normalisers (32 elements, with 2 biases beside them)" in finding.message
        assert {site.module for site in finding.sites} == {"0", "1", "3", "4"}
        assert [site.module for site in finding.sites][:2] == ["1", "4"]


def test_what_a_step_takes_off_is_what_torch_takes_off():
    """Without a gradient γ shrinks by the stated fraction: at once (AdamW), or once momentum has built up (SGD)."""
    gamma = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([gamma], lr=1e-2, weight_decay=0.2)
    gamma.grad = torch.zeros_like(gamma)
    optimizer.step()
    assert 1 - gamma.item() == pytest.approx(2e-3)
    gamma = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([gamma], lr=1e-3, momentum=0.9, weight_decay=0.1)
    values = []
    for _ in range(200):
        gamma.grad = torch.zeros_like(gamma)
        optimizer.step()
        values.append(gamma.item())
    assert 1 - values[-1] / values[-2] == pytest.approx(1e-3, rel=0.02)


def test_coupled_decay_is_a_remark_whose_pull_is_not_told(described):
    (finding,) = _check(described, torch.optim.Adam, lr=0.1, weight_decay=0.5)
    assert finding.severity == "info"
    assert finding.message.endswith("how fast cannot be told from the settings of this optimiser")
    assert [(each.measure, each.value) for each in finding.evidence] == [("weight-decay", 0.5)]


def test_groups_split_as_recipes_do_are_well(described):
    model = _network()
    groups = [
        {"params": [each for each in model.parameters() if each.ndim > 1], "weight_decay": 0.5},
        {"params": [each for each in model.parameters() if each.ndim <= 1], "weight_decay": 0.0},
    ]
    assert DecayedGain().check(described(model, optimizer=torch.optim.AdamW(groups, lr=0.1))) == []


def test_biases_alone_frozen_gains_and_gainless_normalisers_are_well(described):
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LayerNorm(8, elementwise_affine=False))
    frozen = _network()
    for index in (1, 4):
        frozen[index].requires_grad_(False)
    for model in (plain, frozen):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
        assert DecayedGain().check(described(model, optimizer=optimizer)) == []


def test_a_schedule_that_begins_near_nought_is_judged_by_its_height(described):
    model = _network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    assert optimizer.param_groups[0]["lr"] == 0.0
    (finding,) = DecayedGain().check(described(model, optimizer=optimizer))
    assert finding.evidence[0].value == pytest.approx(0.01)


def test_a_normaliser_of_ones_own_is_known_by_its_name(described):
    class TinyRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(8))

    model = nn.Sequential(nn.Linear(4, 8), TinyRMSNorm())
    (finding,) = DecayedGain().check(described(model, optimizer=torch.optim.SGD(model.parameters(), 1, weight_decay=1)))
    assert finding.evidence[0].site.label == "1.gain"


@pytest.mark.parametrize("settings", [{"weight_decay": 0.1, "lr": "nan"}, {"weight_decay": "inf"}, {}])
def test_odd_settings_crash_nothing(described, settings):
    model = _network()
    run = described(model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    structure = run.structure()
    run.describe(dataclasses.replace(structure, groups=(dataclasses.replace(structure.groups[0], settings=settings),)))
    assert DecayedGain().check(run) == []


def test_without_an_optimiser_nothing_is_said(described):
    assert DecayedGain().check(described(_network())) == Inconclusive("decayed-gain", "no optimiser was given")
