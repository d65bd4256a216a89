"""Rotation of scale-invariant weights: w · ∇L = 0, and the equilibrium under weight decay with torch's optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.core.site import Site
from holdfast.live.replay import record_call
from holdfast.live.structure import extract
from holdfast.measures.effective_rate import effective_rate
from holdfast.measures.radial_gradient import radial_gradient
from holdfast.measures.rotation import equilibrium_rotation, rotation
from holdfast.measures.scale_invariance import scale_invariant

SITE = Site("fc", "update", leaf="weight")
DIMENSIONS = 256


def settled(make: Callable[[list[nn.Parameter]], Optimizer], start: float, steps: int, seed: int = 0) -> float:
    """Root mean square rotation over the second half of a training of L = z · w/‖w‖, z drawn anew at every step."""
    generator = torch.Generator().manual_seed(seed)
    w = nn.Parameter(torch.randn(DIMENSIONS, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        w *= start / w.norm()
    optimizer = make([w])
    squares = []
    for step in range(steps):
        before = w.detach().clone()
        optimizer.zero_grad()
        (torch.randn(DIMENSIONS, generator=generator, dtype=torch.float64) @ w / w.norm()).backward()
        optimizer.step()
        if step >= steps // 2 and step % 2:  # every other one: neighbours say nearly the same under momentum
            reading = rotation(before, w.detach(), site=SITE, step=step)
            assert reading is not None
            squares.append(reading.value**2)
    return math.sqrt(math.fsum(squares) / len(squares))


RATE, DECAY = 0.02, 0.1  # 1/(2ηλ) = 250 steps


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("SGD", {}, 1.0),
        ("SGD", {"momentum": 0.9}, 1 / 1.9),
        ("SGD", {"momentum": 0.5, "dampening": 0.3}, 0.7 / 1.5),
        # (1 − μ) ((1 + μ)² + μ⁴ / (1 − μ²))
        ("SGD", {"momentum": 0.9, "nesterov": True}, 0.1 * (1.9**2 + 0.9**4 / 0.19)),
        ("AdamW", {"betas": (0.9, 0.999)}, 0.1 / 1.9),
        ("AdamW", {"betas": (0.5, 0.999)}, 0.5 / 1.5),
    ],
    ids=["SGD", "momentum", "dampening", "nesterov", "AdamW", "AdamW, β₁ = 0.5"],
)
def test_rotation_at_equilibrium(kind: str, settings: dict[str, Any], expected: float) -> None:
    """Within 4 % of √(2ηλ · constant), the constant from table 1 of Kosson et al. 2023, or by hand for the variants."""
    given = {"lr": RATE, "weight_decay": DECAY, **settings}
    told = equilibrium_rotation(kind, given)
    assert told == pytest.approx(math.sqrt(2 * RATE * DECAY * expected))
    # Near the equilibrium norm, so that half the run is spent there; a wrong constant would not be hidden by it.
    start = 3.0 if kind == "AdamW" else 2.0
    assert settled(lambda weights: getattr(torch.optim, kind)(weights, **given), start, 2000) == pytest.approx(
        told, rel=0.04
    )


def test_plain_sgd_turns_by_the_effective_rate() -> None:
    """One step of plain SGD without decay turns by atan(η ‖g̃‖ / ‖w‖²), g̃ the gradient at length 1."""
    w = nn.Parameter(torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64))
    z = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
    direction = w.detach() / w.detach().norm()
    at_one = z - (z @ direction) * direction
    before = w.detach().clone()
    rate = effective_rate(before, 0.7, site=SITE, step=1)
    (z @ w / w.norm()).backward()
    torch.optim.SGD([w], lr=0.7).step()
    turned = rotation(before, w.detach(), site=SITE, step=1)
    assert rate is not None
    assert turned is not None
    assert turned.value == pytest.approx(math.atan(rate.value * float(at_one.norm())), rel=1e-12)


def test_no_equilibrium_where_none_is_known() -> None:
    assert equilibrium_rotation("SGD", {"lr": 0.1, "weight_decay": 0.0}) is None
    assert equilibrium_rotation("Adam", {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.999)}) is None
    assert equilibrium_rotation("RMSprop", {"lr": 0.1, "weight_decay": 0.1}) is None
    decoupled = {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.999), "decoupled_weight_decay": True}
    assert equilibrium_rotation("Adam", decoupled) == equilibrium_rotation("AdamW", decoupled)


def dense(norm: nn.Module | None, *, bias: bool = True, between: nn.Module | None = None) -> nn.Module:
    parts = [nn.Linear(6, 8, bias=bias), between, norm, nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*(part for part in parts if part is not None))


def image(norm: nn.Module, *, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), norm, nn.Tanh(), nn.Flatten(), nn.Linear(8 * 16, 3))


CASES: dict[str, tuple[nn.Module, tuple[int, ...], bool]] = {
    "Linear, BatchNorm": (dense(nn.BatchNorm1d(8, eps=1e-12)), (16, 6), True),
    "Linear, ReLU, BatchNorm": (dense(nn.BatchNorm1d(8, eps=1e-12), bias=False, between=nn.ReLU()), (16, 6), True),
    "Linear, LayerNorm": (dense(nn.LayerNorm(8, eps=1e-12), bias=False), (16, 6), True),
    "Linear, RMSNorm": (dense(nn.RMSNorm(8, eps=1e-12), bias=False), (16, 6), True),
    "Conv, BatchNorm": (image(nn.BatchNorm2d(8, eps=1e-12)), (8, 3, 6, 6), True),
    "Conv, GroupNorm": (image(nn.GroupNorm(2, 8, eps=1e-12), bias=False), (8, 3, 6, 6), True),
    "Conv, InstanceNorm": (image(nn.InstanceNorm2d(8, eps=1e-12)), (8, 3, 6, 6), True),
    "a bias before LayerNorm": (dense(nn.LayerNorm(8)), (16, 6), False),
    "a bias before ReLU": (dense(nn.BatchNorm1d(8), between=nn.ReLU()), (16, 6), False),
    "a saturating function between": (dense(nn.BatchNorm1d(8), bias=False, between=nn.Tanh()), (16, 6), False),
    "local response": (image(nn.LocalResponseNorm(2), bias=False), (8, 3, 6, 6), False),
    "no normaliser": (dense(None, bias=False), (16, 6), False),
}


@pytest.mark.parametrize(("model", "shape", "invariant"), CASES.values(), ids=CASES)
def test_weights_said_to_be_scale_invariant_are_and_the_others_are_not(
    model: nn.Module, shape: tuple[int, ...], invariant: bool
) -> None:
    """Function unchanged at thrice the length to 1e-7, and |cos(w, ∇L)| below 1e-7; neither holds elsewhere."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randn(shape[0], 3, generator=generator, dtype=torch.float64)
    names = scale_invariant(extract(model, call=record_call((x,), {})))
    assert names == (("0.weight",) if invariant else ())
    output: Tensor = model(x)
    (output - target).square().mean().backward()
    weight = model.get_parameter("0.weight")
    assert weight.grad is not None
    radial = radial_gradient(weight.detach(), weight.grad, site=SITE.at(port="weight_grad"), step=1)
    assert radial is not None
    with torch.no_grad():
        weight *= 3
        moved = float((model(x) - output).abs().max())
    assert (moved < 1e-7) == invariant
    assert (abs(radial.value) < 1e-7) == invariant
