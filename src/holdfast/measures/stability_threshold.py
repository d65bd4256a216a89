"""The curvature at which an optimiser becomes unstable, from the optimiser itself.

On a quadratic with curvature λ along one direction each of these is a linear recurrence of second order; it is stable
while both roots of z² − T z + D lie within the unit circle: |D| < 1 and |T| < 1 + D. The first to fail, for positive
λ, is a root at −1, where 1 + T + D = 0:

    gradient descent      x ← x − η λ x                                        λ = 2 / η
    heavy ball            b ← μ b + (1 − τ) λ x,  x ← x − η b                  λ = 2 (1 + μ) / ((1 − τ) η)
    Nesterov, as torch's  b ← μ b + λ x,          x ← x − η (λ x + μ b)        λ = 2 (1 + μ) / ((1 + 2 μ) η)
    Adam, moments frozen  m ← β m + (1 − β) λ x,  x ← (1 − η w) x − η m / P    λ/P = (1 + β) (2 − η w) / ((1 − β) η)

with momentum μ, dampening τ, β = β₁, decoupled decay w, P = √v̂ + ε and η / (1 − β₁ᵗ) for η beside m. Decay that is
added to the gradient adds w to λ. With several groups the steps' sizes go into the preconditioner.

References:
    Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of stability" (momentum).
    Cohen et al. 2022, "Adaptive gradient methods at the edge of stability" (Adam).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer


@dataclass(frozen=True)
class Threshold:
    """An optimiser is stable on a quadratic while λ_max(S^½ (H + W) S^½) is below the threshold.

    Args:
        value: the threshold.
        scale: diagonal of S, one tensor a parameter; 0 where the optimiser does not step.
        decay: diagonal of W, one number a parameter.
        formula: how it was made, for a person.
    """

    value: float
    scale: tuple[Tensor, ...]
    decay: tuple[float, ...]
    formula: str

    def applied(self, times: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The operator whose largest eigenvalue counts.

        Args:
            times: the product with the Hessian.

        Returns:
            The product with S^½ (H + W) S^½.
        """
        if all(bool((each == 1).all()) for each in self.scale) and not any(self.decay):
            return times
        root = torch.cat([each.reshape(-1).sqrt() for each in self.scale])
        decay = torch.cat(
            [torch.full_like(each, w).reshape(-1) for each, w in zip(self.scale, self.decay, strict=True)]
        )

        def product(vector: Tensor) -> Tensor:
            moved = root * vector
            return root * (times(moved) + decay * moved)

        return product


def stability_threshold(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> Threshold | str:
    """What an optimiser's settings, and for Adam its second moments, say.

    Args:
        optimizer: SGD, with or without momentum, Adam or AdamW of torch.
        parameters: whose curvature is looked at.

    Returns:
        The threshold; where there is none, why, as a sentence.
    """
    groups = optimizer.param_groups
    kind = type(optimizer)
    if kind not in (SGD, Adam, AdamW):
        return f"for {kind.__name__} no stability threshold is known here"
    if any(group.get("maximize") for group in groups):
        return "it maximises"
    shared = ("momentum", "dampening", "nesterov") if kind is SGD else ("betas",)
    for name in shared:
        if len({str(group[name]) for group in groups}) > 1:
            return f"its groups differ in {name}, so that no single curvature decides"
    rate = max(float(group["lr"]) for group in groups)
    if not rate > 0:
        return "its learning rate is 0"
    owner = {id(p): group for group in groups for p in group["params"]}
    if not any(id(p) in owner for p in parameters):
        return "it holds none of the parameters"
    if kind is SGD:
        return _descent(parameters, owner, groups[0], rate)
    if not any(optimizer.state.get(p) for p in parameters):
        return "it has made no step yet, so that its second moments are not known"
    decoupled = [group for group in groups if _decoupled(optimizer, group)]
    if any(float(group["lr"]) * float(group["weight_decay"]) >= 2 for group in decoupled):
        return "its learning rate times its weight decay is 2 or more: the decay diverges, whatever the curvature"
    return _adam(optimizer, parameters, owner, groups[0], rate)


def _decoupled(optimizer: Optimizer, group: Any) -> bool:
    return type(optimizer) is AdamW or bool(group.get("decoupled_weight_decay"))


def _descent(parameters: Sequence[nn.Parameter], owner: dict[int, Any], group: Any, rate: float) -> Threshold:
    momentum, dampening = float(group["momentum"]), float(group["dampening"])
    if not momentum:
        value, formula = 2.0, "gradient descent: 2 / η"
    elif group["nesterov"]:
        value, formula = 2 * (1 + momentum) / (1 + 2 * momentum), "Nesterov: 2 (1 + μ) / ((1 + 2 μ) η)"
    else:
        value, formula = 2 * (1 + momentum) / (1 - dampening), "heavy ball: 2 (1 + μ) / ((1 - τ) η)"
    own = [owner.get(id(p)) for p in parameters]
    return Threshold(
        value / rate,
        tuple(
            torch.full_like(p, 0.0 if each is None else float(each["lr"]) / rate).detach()
            for p, each in zip(parameters, own, strict=True)
        ),
        tuple(0.0 if each is None else float(each["weight_decay"]) for each in own),
        formula,
    )


def _adam(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter], owner: dict[int, Any], group: Any, rate: float
) -> Threshold:
    beta = float(group["betas"][0])
    scale, decay = [], []
    for p in parameters:
        own, state = owner.get(id(p)), optimizer.state.get(p)
        if own is None or not state:
            scale.append(torch.zeros_like(p).detach())
            decay.append(0.0)
            continue
        lr, weight_decay = float(own["lr"]), float(own["weight_decay"])
        decoupled = _decoupled(optimizer, own)
        time = float(state["step"])
        second = state["max_exp_avg_sq"] if own["amsgrad"] else state["exp_avg_sq"]
        root = second.detach().sqrt() / math.sqrt(1 - float(own["betas"][1]) ** time) + float(own["eps"])
        size = lr / rate / (1 - beta**time)
        scale.append(size * (2 / (2 - lr * weight_decay) if decoupled else 1.0) / root)
        decay.append(0.0 if decoupled else weight_decay)
    value = 2 * (1 + beta) / (1 - beta) / rate
    return Threshold(value, tuple(scale), tuple(decay), "Adam, preconditioned: 2 (1 + β₁) / ((1 - β₁) η)")
