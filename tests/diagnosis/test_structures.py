import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.structure import ModuleNode
from holdfast.diagnosis import RULES
from holdfast.diagnosis.structures import is_normaliser, judged
from holdfast.store.memory import MemoryRun

STATIC = [rule for rule in RULES if rule.static]


class Block(nn.Module):
    def __init__(self, channels, wider, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wider, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wider)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))

    def forward(self, x):
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.shortcut(x))


def residual():
    body = [Block(8, 8, 1), Block(8, 16, 2)]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 10)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), *body, *ends)


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.norms = nn.ModuleList([nn.GroupNorm(2, 8) for _ in range(3)])
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, 1, 1) for _ in range(3)])
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(F.relu(norm(x)))
        return self.head(x.mean((2, 3)))


def transformer():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Linear(4, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def split(model):
    """Weights decay, vectors do not."""
    decayed = [each for each in model.parameters() if each.ndim > 1]
    spared = [each for each in model.parameters() if each.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3)


SOUND = {
    "residual": (residual, (4, 3, 16, 16)),
    "pre-activation": (PreActivation, (4, 3, 16, 16)),
    "transformer": (transformer, (4, 6, 4)),
}


@pytest.mark.parametrize("network", SOUND)
@pytest.mark.parametrize("rule", STATIC, ids=lambda rule: rule.name)
def test_well_built_networks_have_no_static_finding(described, rule, network):
    build, shape = SOUND[network]
    model = build()
    assert rule.check(described(model, torch.randn(shape), optimizer=split(model))) == []


def test_six_rules_are_static():
    assert {rule.name for rule in STATIC} == {
        "coupled-decay",
        "decayed-gain",
        "degenerate-group",
        "normaliser-order",
        "recurrent-batchnorm",
        "redundant-bias",
    }


@pytest.mark.parametrize("rule", STATIC, ids=lambda rule: rule.name)
def test_a_run_without_a_structure_is_undecided(script, rule):
    answer = rule.check(script().drift("fc", [0.1] * 5).history)
    assert answer == Inconclusive(rule.name, "the model's structure was not recorded")


@pytest.mark.parametrize("name", ["BatchNorm2d", "LlamaRMSNorm", "LayerNorm", "LayerNorm2d", "BatchRenorm"])
def test_normalisers_are_known_by_name(name):
    assert is_normaliser(ModuleNode("a", name, (), True))
    assert is_normaliser(ModuleNode("a", "Mine", (name,), True))


@pytest.mark.parametrize("name", ["Linear", "NormalNoise", "Normalise"])
def test_what_only_sounds_alike_is_no_normaliser(name):
    assert not is_normaliser(ModuleNode("a", name, (), True))


def test_every_model_is_asked_and_one_that_cannot_be_judged_hides_no_finding(described):
    run = described(nn.Linear(1, 1))
    run.describe(dataclasses.replace(run.structure(), stream="other"))
    finding = Finding("rule", "info", (), "found", ())

    def judge(structure):
        return "not this one" if structure.stream == "net" else answers

    answers = [finding]
    assert judged("rule", run, judge) == [finding]
    answers = []
    assert judged("rule", run, judge) == Inconclusive("rule", "not this one")
    assert judged("rule", run, lambda structure: []) == []
    assert judged("rule", MemoryRun("empty"), judge) == Inconclusive("rule", "no model was described")
