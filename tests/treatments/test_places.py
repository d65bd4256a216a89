import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.site import Site
from holdfast.norms import DynamicTanh, GroupNorm, LayerNorm2d
from holdfast.treatments.places import (
    activation_behind,
    expression,
    leaves,
    named,
    norm_before,
    paths_of,
    weighted_before,
)


class Crossed(nn.Module):
    """Registers its layers in another order than it runs them, one of them twice and one never."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 1)
        self.act = nn.Tanh()
        self.first = nn.Linear(2, 3)
        self.unused = nn.Linear(9, 9)

    def forward(self, x):
        return self.last(self.act(self.act(self.first(x))))


def test_a_batch_gives_the_order_of_execution_and_shapes_and_leaves_no_trace():
    model = Crossed()
    assert [leaf.path for leaf in leaves(model)] == ["last", "act", "first", "unused"]
    seen = leaves(model, torch.randn(5, 2))
    assert [(leaf.path, leaf.shape, leaf.calls) for leaf in seen] == [
        ("first", (5, 2), 1),
        ("act", (5, 3), 2),
        ("last", (5, 3), 1),
    ]
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(InputError, match="a batch that the model takes"):
        leaves(model, torch.randn(5, 7))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_neighbours():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 1))
    order = leaves(model)
    assert weighted_before(order, model[3]).path == "0"
    assert weighted_before(order, model[0]) is None
    assert norm_before(order, model[4]).path == "1"
    assert norm_before(order, model[5]) is None
    assert activation_behind(order, model[0]) is model[3]
    assert activation_behind(order, model[4]) is None
    assert activation_behind(order, nn.ReLU()) is None


def test_sites_name_modules_once():
    model = Crossed()
    sites = [Site("act", "input"), Site("act", "output", phase="probe"), Site("last", "input")]
    assert named(model, sites) == [("act", model.act), ("last", model.last)]
    with pytest.raises(InputError, match="'nowhere', which it does not have"):
        named(model, [Site("nowhere", "input")])


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (nn.Sequential(nn.Sequential(nn.Linear(1, 1))), "0.0"),
        (nn.ModuleDict({"a b": nn.ModuleList([nn.Linear(1, 1)])}), "a b.0"),
        (Crossed(), "first"),
        (Crossed(), ""),
    ],
)
def test_expression_names_the_module(model, path):
    assert eval(expression(model, path), {"model": model}) is model.get_submodule(path)


def test_expression_of_a_name_that_is_no_identifier():
    model = nn.Module()
    model.add_module("7", nn.Tanh())
    assert eval(expression(model, "7"), {"model": model}) is model._modules["7"]


def test_paths_of_a_shared_module():
    act = nn.Tanh()
    assert paths_of(nn.Sequential(act, nn.Sequential(act)), act) == ["0", "1.0"]


@pytest.mark.parametrize("norm", [LayerNorm2d(3), DynamicTanh(3, channels_last=False), GroupNorm(3, 3)])
def test_our_normalisers_are_seen_too(norm):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1))
    assert norm_before(leaves(model), model[2]).path == "1"
