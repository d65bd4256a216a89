"""`replay_spike`: was it the batch? The experiment: the same batch under parameters held from before the spike.

Four losses, of the spike's batch b and of usual batches u (their median), under the parameters held from before and as
they are now, add up on the logarithm:

    data        = ln L(b; held) − ln L(u; held)
    parameters  = ln L(u; now)  − ln L(u; held)
    interaction = ln L(b; now)  − ln L(b; held) − parameters
    their sum   = ln L(b; now)  − ln L(u; held), the spike

A bad batch is bad under any parameters; a spoilt model is bad on any batch; a batch that is bad under these parameters
alone is the interaction, the usual case in large models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import nn

from holdfast.core.errors import InputError, StatisticError
from holdfast.core.reading import Table
from holdfast.core.units import Unit
from holdfast.live.labelled_batch import LossFn
from holdfast.live.objective import Evaluation, Objective, norm
from holdfast.live.replay import Mode
from holdfast.live.snapshot import Snapshot

Share = Literal["data", "parameters", "interaction", "none"]

LEAST_USUAL = 3
"""Usual batches: fewer give no idea of how they differ among themselves."""

_COLUMNS: tuple[Share, ...] = ("data", "parameters", "interaction")


class Split(NamedTuple):
    """A rise in its three parts, in nats.

    Args:
        data: of the batch, under the held parameters.
        parameters: of the parameters, on usual batches.
        interaction: of this batch under these parameters, beyond the two.
    """

    data: float
    parameters: float
    interaction: float

    @property
    def total(self) -> float:
        """The whole rise."""
        return math.fsum(self)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What replaying a spike's batch told.

    Args:
        loss: the rise of the loss.
        gradient: the rise of the gradient's norm; `None` where one of the gradients is zero.
        noise: the greatest distance of a usual batch's loss from their median under the held parameters, in nats.
        usual: number of usual batches.
    """

    loss: Split
    gradient: Split | None
    noise: float
    usual: int

    @property
    def origin(self) -> Share:
        """The largest part of the loss's rise; `"none"` where the rise is no more than usual batches differ by."""
        if self.loss.total <= self.noise:
            return "none"
        return max(zip(self.loss, _COLUMNS, strict=True))[1]

    def table(self, step: int) -> Table:
        """As a table: what rose by how much because of what.

        Args:
            step: of the spike.
        """
        rows = {"loss": self.loss} | ({} if self.gradient is None else {"gradient norm": self.gradient})
        values = tuple(tuple(each) for each in rows.values())
        return Table("spike-replay", step, Unit.LOG_RATIO, tuple(rows), _COLUMNS, values, self.usual)


def replay_spike(
    model: nn.Module,
    held: Snapshot,
    batch: Any,
    usual: Sequence[Any],
    loss_fn: LossFn,
    *,
    mode: Mode = "as it was",
) -> Replayed:
    """Evaluate a spike's batch and usual ones under held and present parameters.

    The model, the optimiser and all random generators stay as they were. Buffers (running averages) are the present
    ones under both.

    Args:
        model: as it stood at the spike, or stands since.
        held: of the same model, from before the spike.
        batch: `(inputs, targets)` of the spike.
        usual: three or more other batches.
        loss_fn: `(output, targets)` → a scalar.
        mode: how normalisers and dropout run.

    Returns:
        The rise of loss and gradient norm, split.

    Raises:
        InputError: fewer than three usual batches, or a snapshot of another model.
        StatisticError: a loss that is not finite or not above zero has no logarithm.

    Example:
        >>> import torch
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 1.0)
        >>> held = Snapshot(model, None)
        >>> usual = [(torch.ones(2, 1), torch.full((2, 1), y)) for y in (0.1, 0.0, -0.1)]
        >>> bad = (torch.ones(2, 1), torch.full((2, 1), 9.0))
        >>> replay_spike(model, held, bad, usual, nn.functional.mse_loss).origin
        'data'
    """
    if len(usual) < LEAST_USUAL:
        raise InputError(
            f"{LEAST_USUAL} usual batches or more, to compare the spike's with",
            f"{len(usual)}",
            "type: usual=[next(loader) for _ in range(8)]",
        )
    before, now = [], []
    for each in (batch, *usual):
        objective = Objective(model, loss_fn, each, mode=mode)
        values = held.values(objective.parameters)
        before.append(objective.at(values))
        now.append(objective.at())
    losses = [np.array([each.loss for each in group]) for group in (before, now)]
    if not all(np.isfinite(group).all() and (group > 0).all() for group in losses):
        raise StatisticError(
            "losses that are finite and above zero",
            f"{losses[0].tolist()} under the held parameters, {losses[1].tolist()} under the present ones",
            "for a loss that is not finite read the run's diagnosis: holdfast diagnose RUN",
        )
    logs = np.log(losses)
    gradients = [np.array([_gradient(each) for each in group]) for group in (before, now)]
    usable = all(np.isfinite(group).all() and (group > 0).all() for group in gradients)
    noise = float(np.abs(logs[0, 1:] - np.median(logs[0, 1:])).max())
    return Replayed(_split(logs), _split(np.log(gradients)) if usable else None, noise, len(usual))


def _gradient(evaluation: Evaluation) -> float:
    return norm(evaluation.gradient)


def _split(logs: np.ndarray) -> Split:
    """`logs`: held and now in rows; the batch and then the usual ones in columns."""
    usual = np.median(logs[:, 1:], axis=1)
    data, parameters = float(logs[0, 0] - usual[0]), float(usual[1] - usual[0])
    return Split(data, parameters, float(logs[1, 0] - logs[0, 0]) - parameters)
