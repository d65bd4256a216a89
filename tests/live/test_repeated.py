"""A forward pass under other parameters, from a memo: the same figures, fewer calls, nothing left behind."""

from __future__ import annotations

import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.live.hooks import HookSet
from holdfast.live.layers import parameter_layers
from holdfast.live.repeated import repeated
from holdfast.live.replay import record_call


def other(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value.detach() + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in model.named_parameters()
    }


@pytest.mark.parametrize("record_other", [False, True])
def test_any_change_gives_what_a_full_run_gives(hard, record_other):
    values = other(hard)
    with repeated(hard, record_call((torch.randn(16, 6),), {})) as forward:
        memo = forward.record(values if record_other else None)
        base, changes = (values, forward.parameters) if record_other else (forward.parameters, values)
        assert set(memo.order) == set(values)
        for name in values:
            told = forward.run({name: changes[name]}, memo=memo)
            assert torch.equal(told, forward.run({**base, name: changes[name]})), name
        assert torch.equal(memo.output, forward.run(base))
        assert torch.equal(forward.run(changes, memo=memo), forward.run(changes))


@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_bit_identical_afterwards(hard, everything, fail):
    loss = hard(torch.randn(16, 6)).sum()
    loss.backward()
    call = record_call((torch.randn(16, 6),), {})
    before = everything(hard)
    with pytest.raises(RuntimeError, match="planted") if fail else nullcontext(), repeated(hard, call) as forward:
        memo = forward.record(other(hard))
        leaf = forward.parameters["head.weight"].detach().requires_grad_()
        torch.autograd.grad(forward.run({"head.weight": leaf}, memo=memo).sum(), leaf)
        if fail:
            raise RuntimeError("planted")
        forward.run()
    after = everything(hard)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name] == value, name


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right, self.head = (nn.Linear(4, 4) for _ in range(4))
        self.gate = nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([self.left(x), self.right(x)], 1)[:, 2:6] * self.gate)


def test_only_calls_that_end_before_a_change_are_answered():
    model, ran = Branches(), []
    for name, child in model.named_children():
        child.forward = lambda x, name=name, forward=child.forward: ran.append(name) or forward(x)
    with repeated(model, record_call((torch.randn(2, 4),), {})) as forward:
        memo = forward.record()
        ran.clear()
        for name, expected in {
            "stem.bias": ["stem", "left", "right", "head"],
            "left.weight": ["left", "right", "head"],
            "right.weight": ["right", "head"],
            "gate": ["head"],
            "head.bias": ["head"],
        }.items():
            forward.run({name: forward.parameters[name] + 1}, memo=memo)
            assert ran == expected, name
            ran.clear()
        assert torch.equal(forward.run({}, memo=memo), memo.output)  # the whole model is one call
        assert ran == []


def test_a_container_is_answered_as_a_whole():
    model, called = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)), nn.Linear(2, 2)), []
    with repeated(model, record_call((torch.randn(3, 2),), {})) as forward:
        memo = forward.record()
        hooks = HookSet()
        for path, module in model.named_modules():
            hooks.post(module, lambda *_, path=path: called.append(path))
        with hooks:
            forward.run({"1.bias": torch.ones(2)}, memo=memo)
    assert called == ["0", "1", ""]


def test_hooks_of_the_user_keep_hearing():
    model, heard = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2)), []
    model[0][0].register_forward_hook(lambda module, args, output: heard.append(output) or output * 2)
    with repeated(model, record_call((torch.randn(3, 2),), {})) as forward:
        memo = forward.record()
        heard.clear()
        told = forward.run({"1.bias": torch.ones(2)}, memo=memo)
        assert len(heard) == 1
        assert torch.equal(told, forward.run({"1.bias": torch.ones(2)}))


def test_a_graph_for_what_requires_a_gradient_only():
    model = Branches()
    with repeated(model, record_call((torch.randn(2, 4),), {})) as forward, torch.no_grad():
        memo = forward.record()
        assert not forward.run({"gate": torch.ones(4)}, memo=memo).requires_grad
        leaf = torch.ones(4, requires_grad=True)
        assert forward.run({"gate": leaf}, memo=memo).requires_grad
    assert all(value.grad is None for value in model.parameters())


def test_an_embedding_that_renormalises_its_weight():
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.5), nn.Flatten(), nn.Linear(6, 2))
    before = model[0].weight.detach().clone()
    with repeated(model, record_call((torch.tensor([[0, 1], [2, 3]]),), {})) as forward:
        memo = forward.record()
        first = forward.run({"2.bias": torch.ones(2)}, memo=memo)
        assert torch.equal(first, forward.run({"2.bias": torch.ones(2)}))
    assert torch.equal(model[0].weight, before)


def test_unknown_names_and_shards_are_refused():
    model = nn.Linear(2, 2)
    with repeated(model, record_call((torch.randn(3, 2),), {})) as forward:
        text = "expected names of the model's parameters; got 'gain'; take them from: dict(model.named_parameters())"
        with pytest.raises(InputError, match=re.escape(text)):
            forward.run({"gain": torch.ones(2)})
    model.weight.to_local = lambda: model.weight  # as a DTensor has it
    with (
        pytest.raises(InputError, match="parameters that this process holds whole; got 'weight'"),
        repeated(model, record_call((torch.randn(3, 2),), {})),
    ):
        pass


def test_a_forward_that_calls_other_modules_is_refused():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = (nn.Linear(2, 2) for _ in range(3))

        def forward(self, x):
            turns.append(0)
            return self.head((self.a if len(turns) == 1 else self.b)(x))

    turns: list[int] = []
    with repeated(Fickle(), record_call((torch.randn(3, 2),), {})) as forward:
        memo = forward.record()
        with pytest.raises(InputError, match="calls the same modules when it is repeated; got one that called Linear"):
            forward.run({"head.bias": torch.ones(2)}, memo=memo)


class Tied(nn.Module):
    """The decoder is registered first; the encoder uses the weight first; a bare one hangs beside them."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = nn.Linear(3, 4, bias=False), nn.Embedding(4, 3)
        self.encoder.weight = self.decoder.weight
        self.parts = nn.ParameterList([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))])
        self.attention, self.unused = nn.MultiheadAttention(3, 1, batch_first=True), nn.Linear(1, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

    def forward(self, ids):
        x = self.encoder(ids) * self.parts[1]
        x = self.normed(self.attention(x, x, x)[0] + self.parts[0])
        return F.linear(x, self.decoder.weight)


def test_layers_in_the_order_of_first_use():
    model = Tied()
    with repeated(model, record_call((torch.tensor([[0, 1, 2]]),), {})) as forward:
        layers = parameter_layers(model, forward.record())
    assert [layer.label for layer in layers] == ["encoder", "parts.1", "attention", "parts.0", "normed"]
    assert layers[0].names == ("decoder.weight",)
    assert set(layers[2].names) == {
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
    }
    assert len(layers[4].names) == 3
