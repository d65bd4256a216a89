"""Losses and gradients on the way from where a model stands along one direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.live.objective import Evaluation, Objective, norm


@dataclass(frozen=True, slots=True)
class Descent:
    """What one batch says at several points of a straight line that starts at the parameters.

    Args:
        loss: at the start.
        gradient_norm: at the start.
        lengths: how far each point is from the start, in the parameters' own unit.
        losses: at each point.
        changes: ‖∇L(start) − ∇L(point)‖ at each point.
        n: samples of the batch.
    """

    loss: float
    gradient_norm: float
    lengths: tuple[float, ...]
    losses: tuple[float, ...]
    changes: tuple[float, ...]
    n: int

    @property
    def slopes(self) -> tuple[float, ...]:
        """How much the gradient changed over the way, at each point: ‖∇L(start) − ∇L(point)‖ / ‖start − point‖."""
        return tuple(change / length for change, length in zip(self.changes, self.lengths, strict=True))

    @property
    def usable(self) -> bool:
        """Whether there is a finite, non-zero gradient to start from."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm) and self.gradient_norm > 0


def descend(
    objective: Objective, start: Evaluation, direction: Sequence[Tensor], step_sizes: Sequence[float]
) -> Descent:
    """Walk along a direction.

    Args:
        objective: the loss.
        start: its value where the model stands.
        direction: one tensor a parameter.
        step_sizes: how many times the direction each point lies away.

    Returns:
        The losses and gradients met; infinite where one is not finite.
    """
    length = norm(direction)
    losses, changes = [], []
    for step_size in step_sizes:
        there = objective.moved(direction, step_size)
        losses.append(_or_infinite(there.loss))
        with torch.no_grad():
            difference = [a - b for a, b in zip(start.gradient, there.gradient, strict=True)]
        changes.append(_or_infinite(norm(difference)))
    return Descent(
        start.loss,
        norm(start.gradient),
        tuple(each * length for each in step_sizes),
        tuple(losses),
        tuple(changes),
        objective.samples,
    )


def _or_infinite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
