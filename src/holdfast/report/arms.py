"""`arm_rows`: the arms of a proof as the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.clinic.proof import Proof, Shift


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One arm of a proof.

    Args:
        name: the arm's.
        outcome: mean over the seeds of what decides; NaN where a training diverged.
        loss: the same of the loss on the eval batches.
        diverged: in how many seeds a loss was not finite.
        seconds: median wall-clock time of a training step.
        shift: parameter drift over one step, where it was measured.
    """

    name: str
    outcome: float
    loss: float
    diverged: int
    seconds: float
    shift: Shift | None


def arm_rows(proof: Proof) -> list[ArmRow]:
    """The arms in the order in which they were trained.

    Args:
        proof: of a treatment.

    Returns:
        One row an arm.
    """
    shifts = {each.arm: each for each in proof.shift}
    return [
        ArmRow(
            arm.name,
            _mean(arm.outcome(proof.primary)) if not arm.diverged else math.nan,
            _mean(arm.outcome("loss")),
            arm.diverged,
            arm.seconds,
            shifts.get(arm.name),
        )
        for arm in proof.arms
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
