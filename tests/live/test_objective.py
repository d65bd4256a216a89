"""The loss as a function of the parameters: right values, nothing left behind, clear refusals."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.live.hooks import HookSet
from holdfast.live.objective import Objective, dot, norm
from holdfast.norms import BatchNorm1d


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(8, 6, batch_first=True, dropout=0.2, num_layers=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.unflatten(1, (2, 4)).repeat(1, 1, 2))[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "normalised": lambda: nn.Sequential(
        nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.4), nn.Linear(6, 3)
    ),
    "compiled normaliser": lambda: nn.Sequential(nn.Linear(8, 6), BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)),
    "recurrent": Recurrent,
    "tied": Tied,
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)), nn.Linear(6, 3)),
}


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 8), torch.randint(3, (16,))


def everything(model: nn.Module) -> list[object]:
    """All that an evaluation must leave alone, by value and by identity."""
    state = [each.clone() for each in (*model.parameters(), *model.buffers())]
    gradients = [None if each.grad is None else each.grad.clone() for each in model.parameters()]
    identities = [(id(each), each._version) for each in (*model.parameters(), *model.buffers())]
    modes = [module.training for module in model.modules()]
    generators = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()]
    return [state, gradients, identities, modes, generators]


def assert_same(before: object, after: object) -> None:
    if isinstance(before, Tensor | np.ndarray):
        assert before.tolist() == after.tolist()
    elif isinstance(before, list | tuple):
        assert len(before) == len(after)
        for each, other in zip(before, after, strict=True):
            assert_same(each, other)
    else:
        assert before == after


@pytest.mark.parametrize("name", MODELS)
def test_gives_what_training_would_compute_and_leaves_no_trace(name: str) -> None:
    model, (x, y) = MODELS[name](), batch()
    F.cross_entropy(model(x), y).backward()
    before = everything(model)
    objective = Objective(model, F.cross_entropy, (x, y))
    found = objective.at()
    with torch.no_grad():
        there = objective.at([p + 0.1 for p in objective.parameters])
    assert_same(before, everything(model))

    model.zero_grad()
    loss = F.cross_entropy(model(x), y)  # the same dropout masks: the generators stand where they stood
    loss.backward()
    assert found.loss == loss.item()
    for mine, own in zip(found.gradient, objective.parameters, strict=True):
        assert torch.equal(mine, own.grad)
    assert there.loss != found.loss


def test_gradient_elsewhere_is_that_of_a_model_moved_there() -> None:
    for name, make in MODELS.items():
        model, (x, y) = make().double().eval(), batch()
        objective = Objective(model, F.cross_entropy, (x.double(), y))
        values = [p.detach() + 0.05 * torch.randn_like(p) for p in model.parameters()]
        found = objective.at(values)
        with torch.no_grad():
            for p, value in zip(model.parameters(), values, strict=True):
                p.copy_(value)
        loss = F.cross_entropy(model(x.double()), y)
        loss.backward()
        assert found.loss == pytest.approx(loss.item(), rel=1e-12), name
        for mine, own in zip(found.gradient, model.parameters(), strict=True):
            torch.testing.assert_close(mine, own.grad, rtol=1e-10, atol=1e-12)


def test_the_same_masks_wherever_the_generators_stand_by_now() -> None:
    model, pair = MODELS["normalised"](), batch()
    objective = Objective(model, F.cross_entropy, pair)
    first = objective.at()
    torch.rand(100)
    assert objective.at().loss == first.loss


def test_hooks_of_a_watch_see_no_pass() -> None:
    model, seen = nn.Linear(2, 1), []
    hooks = HookSet()
    hooks.post(model, lambda *_: seen.append(1))
    hooks.attach()
    try:
        Objective(model, lambda out, _: out.sum(), (torch.ones(4, 2), None)).at()
        assert seen == []
        model(torch.ones(4, 2))
        assert seen == [1]
    finally:
        hooks.close()


def test_mode_is_as_asked() -> None:
    model, pair = MODELS["normalised"](), batch()
    losses = {mode: Objective(model, F.cross_entropy, pair, mode=mode).at().loss for mode in ("train", "eval")}
    assert losses["train"] != losses["eval"]
    assert Objective(model, F.cross_entropy, pair).at().loss == losses["train"]
    model.eval()
    assert Objective(model, F.cross_entropy, pair).at().loss == losses["eval"]


def test_frozen_and_unused_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].bias.requires_grad_(False)
    model.register_parameter("spare", nn.Parameter(torch.ones(3)))
    objective = Objective(model, lambda out, _: out.sum(), (torch.ones(4, 2), None))
    assert objective.names == ("spare", "0.weight", "1.weight", "1.bias")
    assert objective.dimension == 3 + 4 + 2 + 1
    assert objective.at().gradient[0].tolist() == [0.0, 0.0, 0.0]


def test_inputs_by_name_and_by_place_and_inputs_that_the_model_writes_to() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            a.mul_(2.0)
            return self.w * (a - b)

    a, b = torch.ones(4), torch.zeros(4)
    for inputs in ((a, b), {"b": b, "a": a}):
        assert Objective(Two(), lambda out, _: out.mean(), (inputs, None)).at().loss == 2.0
    assert a.tolist() == [1.0] * 4


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x * _PRIVATE.random()


_PRIVATE = np.random.default_rng(0)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("model", "loss_fn", "pair", "text"),
    [
        (nn.Linear(2, 1), None, (torch.ones(2, 2), None), "got none"),
        (nn.Linear(2, 1), "mse", (torch.ones(2, 2), None), "got a str"),
        (nn.Linear(2, 1), F.mse_loss, torch.ones(2, 2), "got a Tensor"),
        (nn.Linear(2, 1), F.mse_loss, (torch.ones(2, 2),), "got a tuple of 1"),
        (nn.Linear(2, 1), F.mse_loss, (torch.ones(0, 2), torch.ones(0, 1)), "got none"),
        (nn.Linear(2, 1), lambda out, _: out, (torch.ones(2, 2), None), r"shape \(2, 1\)"),
        (nn.Linear(2, 1), lambda out, _: out.detach().sum(), (torch.ones(2, 2), None), "without a graph"),
        (nn.Linear(2, 1).requires_grad_(False), F.mse_loss, (torch.ones(2, 2), torch.ones(2, 1)), "all frozen"),
        (Noisy(), lambda out, _: out.sum(), (torch.ones(2, 2), None), "the same random state"),
    ],
)
def test_refuses_what_has_no_loss(model: nn.Module, loss_fn: object, pair: object, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Objective(model, loss_fn, pair).at()


def test_norm_and_dot_are_of_all_tensors_as_one_vector() -> None:
    pair = [torch.tensor([3.0]), torch.tensor([[4.0, 12.0]])]
    assert norm(pair) == 13.0
    assert dot(pair, [torch.ones(1), torch.ones(1, 2)]) == 19.0


def test_casts_the_forward_as_training_does_and_nothing_after_it() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        objective = Objective(nn.Linear(2, 1), lambda out, _: out.sum(), (torch.ones(4, 2), None))
    with objective.forward() as (_, output, _):
        assert output.dtype == torch.bfloat16
        assert not torch.is_autocast_enabled("cpu")
