import dataclasses

import pytest
import torch
from torch import nn

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.degenerate_group import DegenerateGroup


def _check(described, norm, *inputs):
    return DegenerateGroup().check(described(nn.Sequential(norm), *inputs))


@pytest.mark.parametrize(
    ("norm", "shape", "text"),
    [
        (nn.GroupNorm(8, 8), (5, 8), "GroupNorm '0' takes each statistic over 1 value"),
        (nn.GroupNorm(8, 8), (5, 8, 1, 1), "GroupNorm '0' takes each statistic over 1 value"),
        (nn.LayerNorm(1), (5, 3, 1), "LayerNorm '0' takes each statistic over 1 value"),
        (nn.LayerNorm((1, 1)), (5, 3, 1, 1), "LayerNorm '0' takes each statistic over 1 value"),
    ],
)
def test_one_value_is_critical_and_beta_is_what_comes_out(described, norm, shape, text):
    (finding,) = _check(described, norm, torch.randn(shape))
    assert finding.severity == "critical"
    assert finding.message == f"{text}: whatever comes in, β comes out"
    assert [(each.value, each.unit, each.n) for each in finding.evidence] == [(1.0, "count", 1)]
    with torch.no_grad():
        norm.bias.fill_(0.25)
        assert norm(torch.randn(shape)).sub(0.25).abs().max() < 1e-3  # rounding, times 1/√ε


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.GroupNorm(4, 8), (5, 8)),
        (nn.GroupNorm(8, 8), (5, 8, 2)),
        (nn.InstanceNorm1d(8), (5, 8, 2)),
        (nn.InstanceNorm2d(8), (8, 1, 2)),
        (nn.LayerNorm(2), (5, 2)),
    ],
)
def test_two_values_are_a_warning_and_one_bit_is_what_comes_out(described, norm, shape):
    (finding,) = _check(described, norm, 100 * torch.randn(shape))
    assert finding.severity == "warning"
    assert finding.message.endswith("over 2 values: all that is left of two values is which is larger")
    assert norm(100 * torch.randn(shape)).abs().sub(1).abs().max() < 1e-2


def test_an_instancenorm_over_one_position_cannot_train_and_evaluates_by_its_running_statistics(described):
    norm = nn.InstanceNorm1d(8, track_running_stats=True)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        norm(torch.randn(5, 8, 1))
    assert norm.eval()(torch.randn(5, 8, 1)).std() > 0.1
    assert _check(described, norm, torch.randn(5, 8, 1)) == []


def test_an_rmsnorm_over_one_feature_keeps_the_sign(described):
    (finding,) = _check(described, nn.RMSNorm(1), torch.randn(5, 1))
    assert finding.severity == "warning"
    assert finding.message.endswith("only the sign of what comes in is left")
    assert _check(described, nn.RMSNorm(2), torch.randn(5, 2)) == []


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.GroupNorm(8, 8), (5, 8, 4, 4)),
        (nn.GroupNorm(2, 8), (5, 8)),
        (nn.InstanceNorm2d(8), (5, 8, 3, 3)),
        (nn.LayerNorm(3), (5, 3)),
        (nn.BatchNorm1d(8), (2, 8)),
        (nn.LocalResponseNorm(2), (5, 8, 1)),
    ],
)
def test_enough_values_are_well(described, norm, shape):
    assert _check(described, norm, torch.randn(shape)) == []


def test_several_are_one_finding(described):
    model = nn.Sequential(nn.GroupNorm(8, 8), nn.Linear(8, 4), nn.GroupNorm(4, 4), nn.Linear(4, 1), nn.LayerNorm(1))
    (finding,) = DegenerateGroup().check(described(model, torch.randn(5, 8)))
    assert finding.message.startswith("GroupNorm and LayerNorm '0', '2', '4' take each statistic over 1 value")
    assert len(finding.evidence) == 3


def test_without_a_pass_what_needs_a_shape_is_undecided(described):
    assert _check(described, nn.GroupNorm(8, 8)) == Inconclusive(
        "degenerate-group", "how many positions '0' normalises over is not known: no forward pass was followed"
    )
    assert isinstance(_check(described, nn.InstanceNorm1d(8)), Inconclusive)
    assert _check(described, nn.GroupNorm(2, 8)) == []
    assert [each.severity for each in _check(described, nn.LayerNorm(1))] == ["critical"]


def test_a_normaliser_that_did_not_run_and_odd_settings(described):
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(4, 4), nn.GroupNorm(4, 4)

        def forward(self, x):
            return self.used(x)

    run = described(Spare(), torch.randn(5, 4))
    assert DegenerateGroup().check(run) == []
    structure = run.structure()
    for settings in ({}, {"num_groups": 0, "num_channels": 4}, {"num_groups": "nan", "num_channels": None}):
        nodes = tuple(
            dataclasses.replace(node, settings=settings, input_shape=(5, 4)) if node.path == "spare" else node
            for node in structure.modules
        )
        run.describe(dataclasses.replace(structure, modules=nodes))
        assert DegenerateGroup().check(run) == []
