import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.normaliser_order import NormaliserOrder
from holdfast.treatments.reorder_norm import ReorderNorm

PICTURES = torch.randn(4, 2, 8, 8)


def _check(described, *layers, inputs=PICTURES):
    return NormaliserOrder().check(described(nn.Sequential(*layers), inputs))


def test_a_normaliser_behind_its_activation_is_a_remark(described):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()
    )
    (finding,) = NormaliserOrder().check(described(model, PICTURES))
    assert finding.severity == "info"
    assert finding.message == (
        "1 of 2 normalisers ('2') stands behind its activation, not in front of it; evidence on which is better is "
        "mixed"
    )
    (reading,) = finding.evidence
    assert (reading.value, reading.unit, reading.n) == (0.5, "fraction", 2)
    assert finding.treatments == ("reorder-norm",)
    ReorderNorm(batch=PICTURES).plan(model, None, finding.sites).apply()
    assert NormaliserOrder().check(described(model, PICTURES)) == []


class Functional(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU()
        self.between = between

    def forward(self, x):
        return self.between(self, x)


@pytest.mark.parametrize("function", [F.relu, torch.tanh, F.gelu])
def test_an_activation_that_is_a_function_is_seen(described, function):
    model = Functional(lambda self, x: self.norm(function(self.conv(x))))
    (finding,) = NormaliserOrder().check(described(model, PICTURES))
    assert finding.message.startswith("1 of 1 normaliser ('norm') stands behind its activation")


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: F.relu(self.norm(self.conv(x))),
        lambda self, x: self.norm(x + self.conv(self.act(x))),
        lambda self, x: self.conv(self.act(self.norm(x))),
        lambda self, x: self.norm(self.act(x)),
        lambda self, x: self.act(self.norm(self.conv(x))) + F.relu(x),
        lambda self, x: self.norm(self.conv(x).clamp(-100, 100)),
    ],
    ids=["before", "sum", "pre-activation", "no layer in front", "function elsewhere", "clamp"],
)
def test_other_orders_are_well(described, forward):
    assert NormaliserOrder().check(described(Functional(forward), PICTURES)) == []


def test_layernorm_behind_an_activation_is_well(described):
    assert _check(described, nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), inputs=torch.randn(5, 3)) == []


@pytest.mark.parametrize(("dropout", "rate"), [(nn.Dropout(0.5), 0.5), (nn.Dropout2d(0.2), 0.2)])
def test_dropout_straight_before_batchnorm_is_a_remark(described, dropout, rate):
    (finding,) = _check(described, nn.Conv2d(2, 4, 3), dropout, nn.BatchNorm2d(4))
    assert finding.severity == "info"
    assert finding.message.startswith("dropout stands straight before the BatchNorm '2': at p = ")
    assert f"at least {1 / (1 - rate):.2g} times as much in training as in evaluation" in finding.message
    assert [(each.value, each.site.module) for each in finding.evidence] == [(rate, "2")]
    assert finding.treatments == ("re-estimate",)


@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_the_variance_grows_by_what_the_message_says(mean):
    x = mean + torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    ratio = (F.dropout(x, 0.5).var() / x.var()).item()
    assert ratio == pytest.approx(2 * (1 + 0.5 * mean**2), rel=0.03)
    assert ratio > 2 * 0.97


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)),
        (nn.Conv2d(2, 4, 3), nn.Dropout(0.0), nn.BatchNorm2d(4)),
        (nn.Conv2d(2, 4, 3), nn.AlphaDropout(0.5), nn.BatchNorm2d(4)),
        (nn.Conv2d(2, 4, 3), nn.Dropout(0.5), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
        (nn.Conv2d(2, 4, 3), nn.Dropout(0.5), nn.GroupNorm(2, 4)),
    ],
    ids=["behind", "p = 0", "alpha", "a layer between", "no running variance"],
)
def test_dropout_elsewhere_is_well(described, layers):
    assert _check(described, *layers) == []


def test_dropout_of_another_branch_is_well(described):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.drop, self.side, self.norm = (
                nn.Linear(3, 4),
                nn.Dropout(),
                nn.Linear(4, 4),
                nn.BatchNorm1d(4),
            )

        def forward(self, x):
            x = self.stem(x)
            return self.side(self.drop(x)) + self.norm(x)

    assert NormaliserOrder().check(described(Branches(), torch.randn(5, 3))) == []


def test_without_a_pass_it_is_undecided(described):
    answer = NormaliserOrder().check(described(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2))))
    assert isinstance(answer, Inconclusive)
    assert "no forward pass was followed" in answer.reason
