"""Products with the Hessian and the Gauss–Newton matrix, against explicit derivatives and differences."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from holdfast import norms
from holdfast.core.errors import InputError
from holdfast.live.curvature import curvature
from holdfast.live.objective import Objective

pytest.importorskip("curvlinops", reason="the extra `landscape` is not installed")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unsqueeze(1) * torch.linspace(0.5, 1.5, 5, dtype=x.dtype)[None, :, None]
        q, k, v = self.qkv(rows).unsqueeze(1).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.unflatten(1, (2, 4)))[0][:, -1])


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.2))
        self.head, self.reentrant = nn.Linear(6, 3), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x.requires_grad_(), use_reentrant=self.reentrant))


def layers(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), *between, nn.Linear(6, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: layers(nn.ReLU()),
    "batch": lambda: layers(nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3)),
    "batch, compiled": lambda: layers(norms.BatchNorm1d(6), nn.Tanh()),
    "layer": lambda: layers(nn.LayerNorm(6), nn.GELU()),  # where forward mode is wrong
    "layer, compiled": lambda: layers(norms.LayerNorm(6), nn.Tanh()),
    "group": lambda: nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.Flatten()),
    "spectral": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3))),
    "attention": Attention,
    "recurrent": Recurrent,
    "checkpointed": lambda: Checkpointed(False),
}


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 8, dtype=torch.float64), torch.randint(3, (16,))


def split(vector: Tensor, objective: Objective) -> list[Tensor]:
    parts = vector.split([each.numel() for each in objective.parameters])
    return [part.view_as(each) for part, each in zip(parts, objective.parameters, strict=True)]


def flat(tensors: Any) -> Tensor:
    return torch.cat([each.reshape(-1) for each in tensors])


@pytest.mark.parametrize("name", MODELS)
def test_hessian_is_the_change_of_the_gradient(name: str) -> None:
    """Central differences in double precision; tolerance 1e-6 of the product."""
    model, batch = MODELS[name]().double(), data()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    versions = [each._version for each in (*model.parameters(), *model.buffers())]
    state = torch.get_rng_state()
    objective = Objective(model, F.cross_entropy, batch)
    vector = torch.randn(objective.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with curvature(objective) as operator:
        product = operator @ vector
    ahead, behind = (objective.moved(split(vector, objective), length) for length in (1e-5, -1e-5))
    expected = (flat(ahead.gradient) - flat(behind.gradient)) / 2e-5
    assert (product - expected).norm() < 1e-6 * expected.norm()

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert versions == [each._version for each in (*model.parameters(), *model.buffers())]
    assert all(each.grad is None for each in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["plain", "batch", "layer", "attention"])
def test_gauss_newton_is_made_of_jacobians(name: str) -> None:
    """Jᵀ (∇²_f ℓ) J written out row by row, in double precision; tolerance 1e-9."""
    model, (x, y) = MODELS[name]().double(), data()
    objective = Objective(model, F.cross_entropy, (x, y))
    with curvature(objective, "gauss-newton") as operator:
        found = torch.stack([operator @ row for row in torch.eye(objective.dimension, dtype=torch.float64)])
    output = model(x)  # the generators stand where they stood
    rows = [flat(torch.autograd.grad(each, list(model.parameters()), retain_graph=True)) for each in output.reshape(-1)]
    jacobian = torch.stack(rows)
    inner = torch.autograd.functional.hessian(
        lambda f: F.cross_entropy(f.view_as(output), y), output.detach().reshape(-1)
    )
    torch.testing.assert_close(found, jacobian.T @ inner @ jacobian, rtol=1e-9, atol=1e-9)


def test_is_an_operator_of_curvlinops() -> None:
    from curvlinops import HessianLinearOperator

    objective = Objective(MODELS["plain"]().double(), F.cross_entropy, data())
    with curvature(objective) as operator:
        assert isinstance(operator, HessianLinearOperator)
        assert operator.shape == (objective.dimension, objective.dimension)
        matrix = operator @ torch.eye(objective.dimension, dtype=torch.float64)
        torch.testing.assert_close(matrix, matrix.T, rtol=1e-9, atol=1e-12)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class SquareOnce(Square):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


class SquareBeside(Square):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0].detach() * grad


class Applied(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(self.linear(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda: Applied(SquareOnce), "SquareOnce"),
        (lambda: Applied(SquareBeside), "SquareBeside"),
        (lambda: layers(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))), "WeightNormInterface"),
        (lambda: Checkpointed(True), "use_reentrant=True"),
    ],
)
def test_operations_without_a_right_second_derivative_are_named(
    model: Callable[[], nn.Module], name: str, dtype: torch.dtype
) -> None:
    x, y = data()
    with (
        pytest.raises(InputError, match=name),
        curvature(Objective(model().to(dtype), F.cross_entropy, (x.to(dtype), y))),
    ):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_own_functions_with_a_right_second_derivative_pass(dtype: torch.dtype) -> None:
    x, y = data()
    with curvature(Objective(Applied(Square).to(dtype), F.cross_entropy, (x.to(dtype), y))) as operator:
        assert operator.shape == (27, 27)


@pytest.mark.parametrize("model", [lambda: Applied(SquareOnce), lambda: Checkpointed(True)])
def test_gauss_newton_names_them_too(model: Callable[[], nn.Module]) -> None:
    with (
        pytest.raises(InputError, match=r"SquareOnce|use_reentrant=True"),
        curvature(Objective(model().double(), F.cross_entropy, data()), "gauss-newton"),
    ):
        pass


def test_an_operation_that_torch_cannot_differentiate_twice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import SDPBackend

    monkeypatch.setattr("holdfast.live.curvature._FORMULA", SDPBackend.FLASH_ATTENTION)
    with (
        pytest.raises(InputError, match="_scaled_dot_product_flash_attention"),
        curvature(Objective(Attention(), F.cross_entropy, (torch.randn(16, 8), torch.randint(3, (16,))))),
    ):
        pass


def test_a_loss_that_is_linear_in_the_output_has_no_gauss_newton_matrix() -> None:
    objective = Objective(nn.Linear(2, 1), lambda out, _: out.sum(), (torch.ones(4, 2), None))
    with pytest.raises(InputError, match="a loss with curvature"), curvature(objective, "gauss-newton"):
        pass
    with curvature(objective) as operator:
        assert (operator @ torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_parameters_of_two_types_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).double())
    objective = Objective(model[:1], lambda out, _: out.sum(), (torch.ones(4, 2), None))
    objective.parameters = tuple(model.parameters())
    with pytest.raises(InputError, match=r"torch\.float32 on cpu and torch\.float64 on cpu"), curvature(objective):
        pass


def test_without_curvlinops_there_is_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    objective = Objective(nn.Linear(2, 1), lambda out, _: out.sum(), (torch.ones(4, 2), None))
    with pytest.raises(InputError, match=r"pip install 'holdfast\[landscape\]'"), curvature(objective):
        pass
