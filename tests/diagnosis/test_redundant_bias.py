import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.redundant_bias import RedundantBias
from holdfast.treatments.drop_bias import DropBias


class Between(nn.Module):
    """A convolution and a normaliser with something of one's own between or beside them."""

    def __init__(self, between, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=bias)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.between = between

    def forward(self, x):
        return self.between(self, self.conv(x))


PICTURES = torch.randn(4, 2, 6, 6)


def test_biases_in_front_of_normalisers_are_found(described):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, bias=False),
        nn.InstanceNorm2d(3),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.BatchNorm1d(5),
        nn.Linear(5, 2),
    )
    (finding,) = RedundantBias().check(described(model, PICTURES))
    assert finding.severity == "info"
    assert finding.message == (
        "2 layers ('0', '6') have biases that the BatchNorm or InstanceNorm behind them subtracts again: 9 parameters "
        "without effect"
    )
    assert [(each.site.label, each.value, each.n) for each in finding.evidence] == [("0.bias", 4, 4), ("6.bias", 5, 5)]
    plan = DropBias(batch=PICTURES).plan(model, None, finding.sites)
    assert [line for line in plan.apply().changes if line.startswith("state_dict")] == [
        "state_dict key 0.bias → none",
        "state_dict key 6.bias → none",
    ]


def test_found_in_a_forward_of_ones_own(described):
    (finding,) = RedundantBias().check(described(Between(lambda self, y: F.relu(self.norm(y))), PICTURES))
    assert [site.module for site in finding.sites] == ["conv"]
    assert finding.message.startswith("1 layer ('conv') has a bias that the BatchNorm or InstanceNorm behind it")


@pytest.mark.parametrize(
    "between",
    [
        lambda self, y: self.norm(F.relu(y)),
        lambda self, y: self.act(self.norm(y) + y),
        lambda self, y: self.norm(y + y.mean()),
        lambda self, y: self.norm(self.norm(y)),
        lambda self, y: F.relu(y),
    ],
    ids=["function between", "second consumer", "added to", "two calls", "no normaliser"],
)
def test_a_bias_that_counts_is_left_alone(described, between):
    assert RedundantBias().check(described(Between(between), PICTURES)) == []


class Own(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)), PICTURES),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), PICTURES),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Dropout(0.1), nn.BatchNorm2d(4)), PICTURES),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), PICTURES),
        (nn.Sequential(nn.Conv2d(2, 4, 3), Own(4)), PICTURES),
        (nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), torch.randn(5, 4)),
        # as many steps of time as features: the normaliser's channels are the steps
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.randn(5, 3, 4)),
        (nn.Sequential(nn.Linear(4, 3), nn.InstanceNorm1d(3)), torch.randn(5, 3, 4)),
    ],
    ids=["no bias", "activation", "dropout", "group", "own class", "layer", "time", "instance over time"],
)
def test_what_does_not_subtract_it_is_well(described, model, inputs):
    assert RedundantBias().check(described(model, inputs)) == []


def test_a_shared_bias_is_left_alone(described):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].bias = model[0].bias
    assert RedundantBias().check(described(model, torch.randn(5, 4))) == []


def test_without_a_pass_or_shapes(described):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    answer = RedundantBias().check(described(model))
    assert isinstance(answer, Inconclusive)
    assert "no forward pass was followed" in answer.reason
    run = described(model, torch.randn(5, 4))
    structure = run.structure()
    nodes = tuple(dataclasses.replace(node, input_shape=None) for node in structure.modules)
    run.describe(dataclasses.replace(structure, modules=nodes))
    assert len(RedundantBias().check(run)) == 1
