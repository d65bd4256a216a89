"""Gradient ICS against the definition: for every layer a fresh copy, a full forward and a full backward.

Long for one file: half of it are networks, each with something that a memo of outputs could get wrong, and all tests
share them and the plain definition.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils import checkpoint

from holdfast.core.errors import InputError
from holdfast.live.moment import Moment
from holdfast.measures.gradient_ics import gradient_ics, take


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu, self.drop, self.shortcut = nn.ReLU(inplace=True), nn.Dropout2d(0.2), nn.Sequential()

    def forward(self, x):
        y = self.norm2(self.conv2(self.drop(self.relu(self.norm1(self.conv1(x))))))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


def resnet():
    blocks = [Residual(4), Residual(4)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


class Dense(nn.Module):
    """Each layer sees all that came before it, and every second one changes it in place first."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6 + 4 * k, 4)) for k in range(3))
        self.plain = nn.ModuleList(nn.Linear(6 + 4 * k, 4) for k in range(3))
        self.head = nn.Linear(18, 5)

    def forward(self, x):
        for layer, plain in zip(self.layers, self.plain, strict=True):
            x = torch.cat([x, layer(x) + plain(x)], 1)
        return self.head(x)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        q, k, v = (each.unflatten(-1, (2, -1)).transpose(1, 2) for each in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.out(mixed), 0.2, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), 0.2, self.training)


class Gpt(nn.Module):
    """The head is registered first, and is the embedding."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 11, bias=False)
        self.tokens, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(6, 8))
        self.tokens.weight = self.head.weight
        self.blocks = nn.ModuleList([Attention(8), Attention(8)])
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, ids):
        x = self.tokens(ids) + self.places[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x * self.gain).flatten(0, 1)


class Bare(nn.Module):
    """Parameters without layers, read through attributes too."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(6, 6) / 2) for _ in range(3)])
        self.last, self.scale = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.ones(6))
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        for weight in self.weights:
            x = F.dropout(torch.tanh(x @ weight.T), 0.2, self.training)
        x = self.linear(x * self.scale)
        return x @ self.last.mT


class Recurrent(nn.Module):
    """An LSTM, then a cell that is called at each step, its BatchNorm too."""

    def __init__(self):
        super().__init__()
        self.lstm, self.cell = nn.LSTM(3, 4, batch_first=True), nn.GRUCell(4, 6)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, x):
        x, _ = self.lstm(x)
        h = x.new_zeros(len(x), 6)
        for t in range(x.shape[1]):
            h = self.norm(self.cell(F.dropout(x[:, t], 0.2, self.training), h))
        return self.head(h)


class Stateful(nn.Module):
    """Keeps things: a running mean that it reads, a count, the last value for whoever asks, a list."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.memory = Memory()
        self.around = Around()

    def forward(self, x):
        x = self.memory(self.a(x))
        x = self.memory(self.b(x)) + self.memory.last
        return self.head(self.around(x) + self.around.listing.seen[-1])


class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.calls, self.last = nn.Linear(6, 6), 0, None
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        self.calls += 1
        self.mean += 0.5 * x.detach().mean(0)
        self.last = torch.sin(x)
        return torch.tanh(self.linear(x - self.mean)) * self.calls


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.listing = Listing()

    def forward(self, x):
        self.listing(x)
        return torch.tanh(x)


class Listing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(6, 6), []

    def forward(self, x):
        self.seen.append(self.linear(x))


class Draws(nn.Module):
    """Skips layers by Python's generator, adds noise of NumPy's and of one of its own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Chance() for _ in range(4))
        self.head, self.mine = nn.Linear(6, 5), torch.Generator().manual_seed(3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) + 0.1 * torch.rand(6, generator=self.mine)
        return self.head(x)


class Chance(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        y = self.linear(x)
        return (torch.tanh(y) if random.random() < 0.5 else torch.sin(y)) + np.random.rand()


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.2), nn.Tanh()) for _ in range(3))
        self.stem, self.head, self.reentrant = nn.Linear(6, 6), nn.Linear(6, 5), reentrant

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint.checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


class Nested(nn.Module):
    """Dictionaries in and out, a cache handed from layer to layer, an argument changed in place."""

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(Cached() for _ in range(3)), nn.Linear(6, 5)
        self.scale = InPlace()

    def forward(self, x):
        cache = {}
        given = {"x": x, "more": [None, 2.0]}
        for layer in self.layers:
            given = layer(given, cache)
            self.scale(given["x"])
        return self.head(given["x"] + sum(cache.values()))


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.other = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, given, cache):
        x = torch.tanh(self.linear(given["x"]))
        cache[len(cache)] = self.other(x)
        return {"x": x * given["more"][1], "more": given["more"]}


class InPlace(nn.Module):
    def forward(self, x):
        x.mul_(1.5)


class Accumulating(nn.Module):
    """What a layer gave is changed in place afterwards, and read again."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        y = self.a(x)
        y *= 1.5
        z = self.b(y)
        z += y
        return self.head(self.c(z) + y)


class Lookup(nn.Module):
    """Gives views of a buffer that another module writes to, and tries what fails."""

    def __init__(self):
        super().__init__()
        self.first, self.memory, self.head = nn.Linear(6, 6), Held(), nn.Linear(6, 5)
        self.middle, self.fails = nn.Linear(6, 6), Fails()

    def forward(self, x):
        x = x + self.first(x)
        self.memory.values.add_(x.detach().mean(0))
        held = self.memory(x)
        self.memory.values.mul_(0.5)
        try:
            x = self.fails(x)
        except ValueError:
            x = torch.tanh(self.middle(x + held))
        return self.head(x * self.memory(x))


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("values", torch.ones(6))

    def forward(self, x):
        return self.values.view(6)


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        if self.linear(x).shape:
            raise ValueError


def mlp():
    layers = [
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.Dropout(0.3), nn.Linear(8, 5))


def old_weight_norm():
    return nn.Sequential(
        torch.nn.utils.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), parametrizations.weight_norm(nn.Linear(8, 5))
    )


def encoder():
    layer = nn.TransformerEncoderLayer(6, 2, 8, 0.2, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(24, 5))


def mixed(*names):
    """Parameter names by layer, from `"layer: weight bias"`."""
    return {label: tuple(name.split()) for label, name in (each.split(": ") for each in names)}


def modules(*paths, leaves="weight bias"):
    return {path: tuple(f"{path}.{leaf}" for leaf in leaves.split()) for path in paths}


def attention(block):
    paths = ("norm1", "qkv", "out", "norm2", "mlp.0", "mlp.2")
    return modules(*(f"blocks.{block}.{path}" for path in paths))


def encoder_layer(k):
    path = f"0.layers.{k}"
    inside = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    return {
        f"{path}.self_attn": tuple(f"{path}.self_attn.{name}" for name in inside),
        **modules(*(f"{path}.{name}" for name in ("norm1", "linear1", "linear2", "norm2"))),
    }


RESIDUAL = [f"{k}.{name}" for k in (1, 2) for name in ("conv1", "norm1", "conv2", "norm2")]
GRU = "weight_ih weight_hh bias_ih bias_hh"
X, IMAGE, IDS, SEQUENCE = (12, 6), (8, 3, 6, 6), (4, 6), (8, 4, 3)

# name: the network, the shape of its input, its layers in the order of execution with their parameters
CASES = {
    "mlp": (mlp, X, modules("0", "1", "4", "5", "8")),
    "resnet": (
        resnet,
        IMAGE,
        {
            **modules("0"),
            **{
                path: (f"{path}.weight",) if "conv" in path else (f"{path}.weight", f"{path}.bias") for path in RESIDUAL
            },
            **modules("5"),
        },
    ),
    "dense": (
        Dense,
        X,
        {
            **{p: v for k in range(3) for p, v in modules(f"layers.{k}.1", f"plain.{k}").items()},
            **modules("head"),
        },
    ),
    "gpt": (
        Gpt,
        IDS,
        {
            **mixed("tokens: head.weight", "places: places"),
            **attention(0),
            **attention(1),
            **mixed("gain: gain"),
        },
    ),
    "bare": (
        Bare,
        X,
        {
            **{f"weights.{k}": (f"weights.{k}",) for k in range(3)},
            **mixed("scale: scale"),
            **modules("linear"),
            **mixed("last: last"),
        },
    ),
    "recurrent": (
        Recurrent,
        SEQUENCE,
        {
            "lstm": tuple(f"lstm.{name}_l0" for name in GRU.split()),
            "cell": tuple(f"cell.{name}" for name in GRU.split()),
            **modules("norm", "head"),
        },
    ),
    "stateful": (Stateful, X, modules("a", "memory.linear", "b", "around.listing.linear", "head")),
    "draws": (Draws, X, modules(*(f"layers.{k}.linear" for k in range(4)), "head")),
    "checkpoint": (lambda: Checkpointed(False), X, modules("stem", "blocks.0.0", "blocks.1.0", "blocks.2.0", "head")),
    "reentrant": (lambda: Checkpointed(True), X, modules("stem", "blocks.0.0", "blocks.1.0", "blocks.2.0", "head")),
    "nested": (
        Nested,
        X,
        {
            **{p: v for k in range(3) for p, v in modules(f"layers.{k}.linear", f"layers.{k}.other").items()},
            **modules("head"),
        },
    ),
    "accumulating": (Accumulating, X, modules("a", "b", "c", "head")),
    "lookup": (Lookup, X, modules("first", "fails.linear", "middle", "head")),
    "old weight norm": (
        old_weight_norm,
        X,
        {
            **mixed("0: 0.weight_orig 0.bias"),
            "2": ("2.parametrizations.weight.original0", "2.parametrizations.weight.original1", "2.bias"),
        },
    ),
    "encoder": (encoder, (8, 4, 6), {**encoder_layer(0), **encoder_layer(1), **modules("2")}),
}


def build(name):
    network, shape, layers = CASES[name]
    model = network()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(shape, generator=generator)
    if name == "gpt":
        inputs = torch.randint(11, shape, generator=generator)
        targets = inputs.roll(1, 1)
    else:
        targets = torch.randint(5, shape[:1], generator=generator)
    update = {
        key: 0.1 * torch.randn(value.shape, generator=generator) * value.detach().std().nan_to_num(1.0).clamp_min(0.1)
        for key, value in model.named_parameters()
    }
    return model, (inputs, targets), update, layers


def loss_of(output, targets):
    return F.cross_entropy(output, targets.flatten())


def definition(model, batch, before, moved):
    """Gradients with the parameters in `moved` at `before` + update, from copies of model and random state."""
    python, numpy, state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(before[name] + moved.get(name, 0.0))
            parameter.grad = None
    loss_of(twin(batch[0].clone()), batch[1]).backward()
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(state)
    return {
        name: torch.zeros_like(parameter).double() if parameter.grad is None else parameter.grad.double()
        for name, parameter in twin.named_parameters()
    }


def naive(model, batch, before, step, layers):
    """Rows of (raw, relative, cosine) by Definition 2.1, and the gradients."""
    old = definition(model, batch, before, {})
    rows, moved, differences = [], {}, []
    for names in layers.values():
        new = definition(model, batch, before, moved)
        a, b = (torch.cat([each[name].flatten() for name in names]) for each in (old, new))
        rows.append((float((a - b).norm()), float((a - b).norm() / a.norm()), float(a @ b / (a.norm() * b.norm()))))
        differences.append((b - a, a))
        moved.update({name: step(name, old) for name in names})
    return rows, differences


def close(found, expected):
    return found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name, at):
    model, batch, update, layers = build(name)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    if at == "after":
        with torch.no_grad():
            for key, value in model.named_parameters():
                value += update[key]
        before = {key: value.detach() - update[key] for key, value in model.named_parameters()}
    table = gradient_ics(model, loss_of, batch, update, at=at, matched=(), debiased=False)
    assert table.rows == tuple(layers)
    expected, _ = naive(model, batch, before, lambda key, _: update[key], layers)
    for label, found, wanted in zip(table.rows, table.values, expected, strict=True):
        if label != "fails.linear":  # which has no gradient
            assert close(found[:3], wanted), label
    assert max(values[0] for values in table.values) > 1e-3  # there is something to see
    assert table.n == len(batch[0])


def test_first_layer_has_none_and_a_layer_that_did_not_move_moves_nobody():
    model, batch, update, _ = build("mlp")
    frozen = {key: value for key, value in update.items() if key.startswith("8.")}
    table = gradient_ics(model, loss_of, batch, frozen, at="before")
    raw = [values[0] for values in table.values]
    assert raw[0] == 0.0
    assert raw == pytest.approx([0.0] * 5, abs=1e-7)  # only the last layer moved, and nothing runs behind it
    assert [values[2] for values in table.values] == pytest.approx([1.0] * 5)


@pytest.mark.parametrize("name", ["mlp", "dense", "bare"])
def test_matched_steps_equal_the_definition(name):
    model, batch, update, layers = build(name)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    table = gradient_ics(model, loss_of, batch, update, at="before", matched=(1e-3, 0.1), debiased=False)
    assert table.columns[4:] == ("relative at ρ=0.001", "cosine at ρ=0.001", "relative at ρ=0.1", "cosine at ρ=0.1")
    for place, rho in ((4, 1e-3), (6, 0.1)):

        def step(key, old, rho=rho):
            size = float(old[key].norm())
            return -(rho * float(before[key].norm()) / size * old[key]).float() if size else 0.0

        expected, _ = naive(model, batch, before, step, layers)
        for label, found, (_, relative, cosine) in zip(table.rows, table.values, expected, strict=True):
            assert close(found[place : place + 2], (relative, cosine)), label


def test_debiased_is_the_product_of_two_halves():
    model, batch, update, layers = build("mlp")
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    table = gradient_ics(model, loss_of, batch, update, at="before", matched=())
    halves = [tuple(each[part] for each in batch) for part in (slice(0, 6), slice(6, 12))]
    found = [naive(model, half, before, lambda key, _: update[key], layers)[1] for half in halves]
    for values, (d1, g1), (d2, g2) in zip(table.values, *found, strict=True):
        product, gradient = float(d1 @ d2), float(g1 @ g2)
        assert values[4] == pytest.approx(math.sqrt(max(0.0, product)), rel=1e-5, abs=1e-6)
        wanted = math.sqrt(max(0.0, product) / gradient) if gradient > 0 else math.nan
        assert values[5] == pytest.approx(wanted, rel=1e-5, abs=1e-6, nan_ok=True)
    assert any(values[4] > 0 for values in table.values)


@pytest.fixture
def runs(monkeypatch):
    """The linear and convolutional layers that ran, one entry a run."""
    ran = []
    for kind in (nn.Linear, nn.Conv2d):

        @functools.wraps(kind.forward)
        def counting(self, x, forward=kind.forward):
            ran.append(self)
            return forward(self, x)

        monkeypatch.setattr(kind, "forward", counting)
    return ran


def test_modules_run_only_behind_the_layer(runs):
    """20 equal layers: a pass at θᵗ, one at θᵗ⁺¹, and for layers 2 to 20 what lies behind: 20 + 20 + (19 + … + 1)."""
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(20)])
    update = {name: 0.01 * torch.randn_like(value) for name, value in model.named_parameters()}
    batch = torch.randn(8, 4), torch.randint(4, (8,))
    gradient_ics(model, loss_of, batch, update, matched=(), debiased=False)
    assert len(runs) == 230  # instead of 21 passes: 420


@pytest.mark.parametrize(("name", "recordings"), [("resnet", 2), ("gpt", 1), ("dense", 1), ("checkpoint", 1)])
def test_branches_run_only_behind_the_layer(name, recordings, runs):
    model, batch, update, layers = build(name)
    gradient_ics(model, loss_of, batch, update, matched=(), debiased=False)
    kinds = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    places = [list(layers).index(path) if path in layers else len(layers) for path in kinds]  # the tied head is last
    behind = sum(place >= number for number in range(1, len(layers)) for place in places)
    assert len(runs) == (2 + recordings) * len(kinds) + behind  # one to see whether the forward repeats itself


def everything(model):
    """All that must stay as it is, bit for bit and object for object."""
    found = {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "grad": torch.is_grad_enabled(),
        "checkpoint": (checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator),
    }
    for name, value in model.named_parameters():
        gradient = None if value.grad is None else (id(value.grad), value.grad.tolist())
        found[f"parameter {name}"] = (id(value), value._version, value.tolist(), gradient, value.requires_grad)
    for path, module in model.named_modules():
        for name, value in module._buffers.items():
            found[f"buffer {path}.{name}"] = (id(value), value._version, value.tolist())
        for name, value in module.__dict__.items():
            if isinstance(value, torch.Tensor):
                found[f"{path}.{name}"] = (id(value), value._version, value.tolist())
            elif isinstance(value, torch.Generator):
                found[f"{path}.{name}"] = value.get_state().tolist()
            elif name != "_flat_weight_refs":
                found[f"{path}.{name}"] = (id(value), str(value) if isinstance(value, list | dict | set) else None)
        found[f"keys {path}"] = list(module.__dict__)
    return found


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_leaves_everything_bit_for_bit_as_it_was(name, fail):
    model, batch, update, _ = build(name)
    loss_of(model(batch[0]), batch[1]).backward()
    before = everything(model)
    calls = []

    def loss_fn(output, targets):
        calls.append(output)
        if fail and len(calls) == 4:
            raise ValueError("planted")
        return loss_of(output, targets)

    if fail:
        with pytest.raises(ValueError, match="planted"):
            gradient_ics(model, loss_fn, batch, update, debiased=False)
    else:
        gradient_ics(model, loss_fn, batch, update, debiased=False)
    after = everything(model)
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert after[key] == value, key


def test_between_forward_and_backward_of_the_user():
    built, batch, update, _ = build("mlp")

    def gradients(measured):
        model = copy.deepcopy(built)
        torch.manual_seed(5)
        loss = loss_of(model(batch[0]), batch[1])
        if measured:
            gradient_ics(model, loss_of, batch, update)
        loss.backward()  # raises if a saved tensor had been written to
        return [parameter.grad for parameter in model.parameters()]

    for alone, beside in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(alone, beside)


def test_without_grad_gives_the_same():
    model, batch, update, _ = build("gpt")
    expected = gradient_ics(model, loss_of, batch, update, matched=(), debiased=False)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            found = gradient_ics(model, loss_of, batch, update, matched=(), debiased=False)
        assert str(found) == str(expected)  # as text: NaN is not equal to itself


def test_automatic_casting_is_that_of_the_caller():
    model, batch, update, layers = build("mlp")
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    with torch.autocast("cpu", torch.bfloat16):
        table = gradient_ics(model, loss_of, batch, update, at="before", matched=(), debiased=False)
        expected, _ = naive(model, batch, before, lambda key, _: update[key], layers)
    for found, wanted in zip(table.values, expected, strict=True):
        assert found[:3] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_scale_free_only_before_a_normaliser(norm):
    model = nn.Sequential(
        nn.Linear(6, 32, bias=False), norm(32, eps=1e-12), nn.Tanh(), nn.Linear(32, 16, bias=False), norm(16, eps=1e-12)
    )
    model.append(nn.Linear(16, 5))
    update = {key: 0.1 * torch.randn_like(value) for key, value in model.named_parameters()}
    batch = torch.randn(64, 6), torch.randint(5, (64,))
    table = gradient_ics(model, loss_of, batch, update, at="before")
    place = table.columns.index("‖W‖·raw")
    told = {row: values[place] for row, values in zip(table.rows, table.values, strict=True)}
    assert told["0"] == 0.0
    assert told["3"] == pytest.approx(float(model[3].weight.detach().norm()) * table.values[2][0], rel=1e-6)
    assert all(math.isnan(told[row]) for row in ("1", "4", "5"))
    with torch.no_grad():
        model[3].weight.mul_(8.0)
    update["3.weight"] *= 8.0
    scaled = gradient_ics(model, loss_of, batch, update, at="before")
    assert scaled.values[2][0] == pytest.approx(table.values[2][0] / 8, rel=1e-4)  # the raw figure depends on the scale
    assert scaled.values[2][place] == pytest.approx(told["3"], rel=1e-4)


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.cut, self.frozen, self.last = (nn.Linear(6, 6) for _ in range(4))
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(6, 6)

    def forward(self, x):
        y = self.cut(x).round().detach()
        return self.last(self.frozen(self.first(x)) + y)


def test_a_layer_without_gradient_has_an_empty_row_and_a_warning():
    model = Cut()
    update = {key: torch.ones_like(value) for key, value in model.named_parameters()}
    with pytest.warns(RuntimeWarning, match="no gradient, or none that is finite, reaches cut: there is no figure"):
        table = gradient_ics(model, loss_of, (torch.randn(8, 6), torch.arange(8) % 5), update)
    assert table.rows == ("cut", "first", "last")  # what is frozen or unused has no row
    assert all(map(math.isnan, table.values[0]))
    assert table.values[1][0] > 0  # through the cut layer's output, which moved
    assert all(math.isfinite(value) for value in table.values[2][:3])


def test_a_compiled_model_is_looked_into():
    model, batch, update, _ = build("mlp")
    expected = gradient_ics(model, loss_of, batch, update, matched=(), debiased=False)
    compiled = torch.compile(model, backend="eager")
    assert str(gradient_ics(compiled, loss_of, batch, update, matched=(), debiased=False)) == str(expected)


def test_a_loss_that_is_not_finite_gives_no_figure():
    model, batch, update, _ = build("mlp")
    with pytest.warns(RuntimeWarning, match="no gradient, or none that is finite, reaches 0, 1, 4, 5, 8"):
        table = gradient_ics(model, lambda output, t: loss_of(output, t) * math.inf, batch, update, matched=())
    assert all(math.isnan(value) for row in table.values for value in row)


def test_shared_names_mean_one_parameter():
    model, batch, update, _ = build("gpt")
    other = {("tokens.weight" if key == "head.weight" else key): value for key, value in update.items()}
    expected = gradient_ics(model, loss_of, batch, update, matched=(), debiased=False)
    assert str(gradient_ics(model, loss_of, batch, other, matched=(), debiased=False)) == str(expected)
    with pytest.raises(InputError, match=r"one update for 'head\.weight'"):
        gradient_ics(model, loss_of, batch, {**other, "head.weight": 2 * update["head.weight"]})


def test_take_measures_one_step_of_a_watch():
    model, batch, update, _ = build("mlp")
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    with torch.no_grad():
        for key, value in model.named_parameters():
            value += update[key]
    moment = Moment(model, 7, before=before, batch=batch, loss_fn=loss_of)
    (table,) = take(moment)
    made = {key: value.detach() - before[key] for key, value in model.named_parameters()}
    wanted = gradient_ics(model, loss_of, batch, made, step=7)
    assert (table.measure, table.step, table.rows, table.columns) == ("gradient-ics", 7, wanted.rows, wanted.columns)
    for found, expected in zip(table.values, wanted.values, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True)
    small = Moment(model, 7, before=before, batch=(batch[0][:3], batch[1][:3]), loss_fn=loss_of)
    assert "debiased" not in take(small)[0].columns


def test_inputs_as_the_model_takes_them():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 5)

        def forward(self, x, y):
            return self.b(torch.tanh(self.a(x)) + y)

    model, x, y, targets = Two(), torch.randn(8, 6), torch.randn(8, 5), torch.arange(8) % 5
    update = {"a.weight": torch.ones(5, 6)}
    tables = [gradient_ics(model, loss_of, (given, targets), update) for given in ((x, y), {"y": y, "x": x}, [x, y])]
    assert str(tables[0]) == str(tables[1]) == str(tables[2])
    assert tables[0].values[1][0] > 0


GENERATOR = np.random.default_rng(0)


class RandomAtLarge(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        return self.linear(x) * GENERATOR.random()


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        return self.linear(x).detach()


class Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()


class WithoutBackward(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        return Fused.apply(self.linear(x))


GOOD = {
    "model": lambda: nn.Sequential(nn.Linear(6, 5)),
    "loss_fn": loss_of,
    "batch": (torch.ones(8, 6), torch.zeros(8).long()),
}
WEIGHT = {"0.weight": torch.ones(5, 6)}
LINEAR = {"linear.weight": torch.ones(5, 6)}
MISTAKES = {
    "no loss": ({"loss_fn": None}, "expected a loss_fn(output, targets); got none; type: loss_fn="),
    "not a loss": ({"loss_fn": 3}, "got a int"),
    "no pair": ({"batch": torch.ones(8, 6)}, "expected a batch (inputs, targets); got a Tensor; type: batch=(inputs,"),
    "no batch": ({"batch": None}, "expected a batch (inputs, targets); got none"),
    "no samples": ({"batch": (torch.ones(0, 6), torch.ones(0))}, "expected inputs with at least one sample; got none"),
    "no targets": ({"batch": (torch.ones(8, 6), None)}, "expected targets for the loss; got None, with which it fails"),
    "no scalar": ({"loss_fn": lambda o, t: o}, "expected a loss that is one number, as a tensor; got shape (8, 5)"),
    "a float": ({"loss_fn": lambda o, t: 1.0}, "got a float"),
    "too few": (
        {"batch": (torch.ones(3, 6), torch.zeros(3).long())},
        "to be cut into 2 parts along the first axis of inputs and targets; got 3; type: debiased=False",
    ),
    "uneven": ({"batch": (torch.ones(8, 6), torch.zeros(9).long())}, "got lengths 8, 9; type: debiased=False"),
    "no update": (
        {"update": {}},
        "expected the update of at least one parameter, by its name; got dict {}; type: update",
    ),
    "no mapping": ({"update": torch.ones(3)}, "expected the update of at least one parameter, by its name; got Tensor"),
    "unknown": ({"update": {"9.weight": torch.ones(1)}}, "got one of '9.weight', which it has not; type: update = {"),
    "shape": (
        {"update": {"0.weight": torch.ones(6, 5)}},
        "expected an update of shape (5, 6) for '0.weight'; got shape (6, 5); type: update = {",
    ),
    "no tensor": ({"update": {"0.weight": 1.0}}, "got a float"),
    "infinite": (
        {"update": {"0.weight": torch.full((5, 6), math.inf)}},
        "expected a finite update; got NaN or infinity",
    ),
    "at": ({"at": "now"}, 'expected at="after" or at="before"; got at=\'now\''),
    "steps": ({"matched": (0.0,)}, "expected relative steps above 0; got matched=(0.0,)"),
    "random": (
        {"model": RandomAtLarge, "update": LINEAR, "debiased": False},
        "expected a forward pass that gives the same output when it is repeated; got another output from the same",
    ),
    "no graph": (
        {"model": Rounded, "update": LINEAR},
        "expected a loss that the trained parameters can be differentiated through to; got one without a graph",
    ),
    "no backward": (
        {"model": WithoutBackward, "update": LINEAR},
        "expected a forward pass that can be differentiated; got NotImplementedError",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name, shapes_unchecked):
    changes, text = MISTAKES[name]
    given = {**GOOD, "update": WEIGHT, **changes}
    model = given.pop("model")()
    with pytest.raises(InputError, match=re.escape(text)):
        gradient_ics(model, given.pop("loss_fn"), given.pop("batch"), given.pop("update"), **given)
