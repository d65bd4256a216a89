"""Rotation: by what angle a step turns a weight.

    angle = 2 asin(½ ‖w/‖w‖ − w′/‖w′‖‖)      (exact for small angles, where arccos is not)

    in equilibrium, with weight decay λ and rate η, root mean square over steps:
    SGD √(2ηλ)  ·  SGD with momentum μ √(2ηλ/(1+μ))  ·  AdamW √(2ηλ (1−β₁)/(1+β₁))

What it sees:
    The change of direction of a whole weight over one optimiser step, all of the optimiser included.

Why it matters:
    A weight in front of a normaliser counts by its direction alone: this is how fast that layer learns. Under weight
    decay it settles at a rate that learning rate and decay set and the loss does not; layers far from it are out of
    step with the others, as at the start without warm-up.

When it is wrong:
    Without a normaliser the length matters too: see update-ratio. The equilibrium (`equilibrium_rotation`) is for
    scale-invariant weights, many steps of about 1/(2ηλ) each after the start, steps small (ηλ ≪ 1) and gradients of
    successive batches nearly independent: where they agree (a large batch, the start) the rotation is larger. Adam with
    decay in the gradient, Lion and others have constants of their own, not given here.

Example:
    >>> import torch
    >>> reading = rotation(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 9.0]), site=Site("fc", "update"), step=1)
    >>> round(reading.value, 6)                                                                             # π/2
    1.570796
    >>> round(equilibrium_rotation("SGD", {"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9}), 6)
    0.007255

References:
    Kosson, Messmer & Jaggi 2023, "Rotational equilibrium: how weight decay balances learning across neural networks",
    table 1. van Laarhoven 2017, "L2 regularization versus batch and weight normalization".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.live.moment import Moment
from holdfast.measures.scale_invariance import scale_invariant
from holdfast.measures.weights import same_shape, weight_site, weights_of

QUANTITY = Quantity("rotation", "rotation", Unit.ANGLE, "neither", (0.0, math.pi), logarithmic=True)


@torch.no_grad()
def rotation(before: Tensor, after: Tensor, *, site: Site, step: int, lag: int = 1) -> Reading | None:
    """Angle between a weight and itself some steps later.

    Args:
        before: the weight.
        after: the same weight later.
        site: where.
        step: the step after which `after` holds.
        lag: optimiser steps between the two.

    Returns:
        The angle in radians; `None` where one of the two is zero or not finite and has no direction.

    Raises:
        InputError: the shapes differ.
    """
    same_shape(before, after, "a weight before and after")
    u, v = before.detach().double(), after.detach().double()
    lengths = float(torch.linalg.vector_norm(u)), float(torch.linalg.vector_norm(v))
    if not all(0.0 < length < math.inf for length in lengths):
        return None
    chord = float(torch.linalg.vector_norm(u / lengths[0] - v / lengths[1]))
    angle = 2 * math.asin(min(chord / 2, 1.0))
    return Reading(QUANTITY.name, site, step, angle, QUANTITY.unit, before.numel(), lag=lag)


def equilibrium_rotation(optimiser: str, settings: Mapping[str, Any]) -> float | None:
    """The rotation per step that a scale-invariant weight settles at, root mean square over steps.

    A gradient g enters the weight as −η Σ_k c_k g, spread over the steps k that follow. At equilibrium what gradients
    add to ‖w‖² is what decay takes off, and successive gradients are taken as independent. With g orthogonal to w:
        rotation² = η² Σc² ‖g‖²/‖w‖²
        SGD, whose decay goes through the momentum too   (η Σc)² ‖g‖² = 2 η λ Σc ‖w‖²   so   rotation² = 2ηλ Σc²/Σc
        AdamW, whose decay is decoupled                  (η Σc)² ‖g‖² = 2 η λ ‖w‖²      so   rotation² = 2ηλ Σc²/(Σc)²
    with Σc² the sum of squares: momentum μ with dampening d has c_k = (1−d) μᵏ, AdamW c_k = (1−β₁) β₁ᵏ.

    Args:
        optimiser: name of its class.
        settings: of the weight's parameter group, as the optimiser names them.

    Returns:
        In radians a step; `None` without weight decay, and for optimisers other than SGD and Adam with decoupled decay.
    """
    rate, decay = float(settings.get("lr") or 0.0), float(settings.get("weight_decay") or 0.0)
    if not rate > 0 or not decay > 0:
        return None
    if optimiser == "AdamW" or (optimiser == "Adam" and settings.get("decoupled_weight_decay")):
        beta = float(settings["betas"][0])
        return math.sqrt(2 * rate * decay * (1 - beta) / (1 + beta))
    if optimiser != "SGD":
        return None
    momentum, damped = float(settings.get("momentum") or 0.0), 1 - float(settings.get("dampening") or 0.0)
    first, total, squares = 1.0, 1.0, 1.0
    if momentum and settings.get("nesterov"):  # g + μ v, and v = Σ μᵏ g
        first = 1 + momentum
        total = first + momentum**2 / (1 - momentum)
        squares = first**2 + momentum**4 / (1 - momentum**2)
    elif momentum:
        total, squares = damped / (1 - momentum), damped**2 / (1 - momentum**2)
    return math.sqrt(2 * rate * decay * squares / total)


def take(moment: Moment) -> list[Reading]:
    """Rotation of the scale-invariant weights of a model over the step; of all its weights where no graph is known.

    Args:
        moment: with the parameters before the step.

    Returns:
        One reading a weight of two or more dimensions that has a direction.
    """
    names = None if moment.structure is None or not moment.structure.order else scale_invariant(moment.structure)
    return [
        reading
        for name, before, now in weights_of(moment, names)
        if before is not None and now.ndim >= 2
        for reading in [
            rotation(before, now.detach(), site=weight_site(name, "update", moment.stream), step=moment.step)
        ]
        if reading is not None
    ]
