"""A snapshot puts model and optimiser back bit for bit, in the very same objects."""

import copy

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.live.snapshot import Snapshot

OPTIMISERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adam, rate in a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
}


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()


def frozen(model, optimizer):
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return copy.deepcopy((model.state_dict(), optimizer.state_dict())), gradients, [m.training for m in model.modules()]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("steps", [0, 2])
def test_everything_is_put_back_twice(kind, steps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    optimizer = OPTIMISERS[kind](model.parameters())
    for _ in range(steps):
        step(model, optimizer)
    model[2].eval()
    before = frozen(model, optimizer)
    objects = [id(each) for each in (*model.parameters(), *model.buffers(), *optimizer.state)]
    snapshot = Snapshot(model, optimizer)
    for _ in range(2):
        model.train()
        model[0].weight.requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = None
        for _ in range(3):
            step(model, optimizer)
        for group in optimizer.param_groups:
            group["lr"] *= 7
            group["added"] = 1
        assert not equal(frozen(model, optimizer), before)
        snapshot.restore()
        assert equal(frozen(model, optimizer), before)
        assert model[0].weight.requires_grad
        assert [id(each) for each in (*model.parameters(), *model.buffers(), *optimizer.state)] == objects
    after = frozen(model, optimizer)
    step(model, optimizer)  # it still trains
    assert not equal(frozen(model, optimizer)[0], after[0])


def test_kept_values_can_be_read_without_putting_them_back():
    layer = nn.Linear(2, 3)
    expected = [each.detach().clone() for each in (layer.bias, layer.weight)]
    snapshot = Snapshot(layer, None)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    assert all(map(torch.equal, snapshot.values([layer.bias, layer.weight]), expected))
    assert not layer.weight.any()
    with pytest.raises(InputError, match="expected a snapshot of this model"):
        snapshot.values([nn.Linear(1, 1).weight])
