"""The same training over and over at other learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from holdfast.core.errors import InputError
from holdfast.core.reading import Table
from holdfast.core.units import Unit


@dataclass(frozen=True, slots=True)
class Sweep:
    """Final losses by learning rate.

    A training has *diverged* where its final loss is not finite or above the initial loss.

    Args:
        initial: ℓ₀, the loss before training, or that of guessing.
        rates: the grid, rising, evenly spread on a logarithmic scale.
        losses: one row a rate, one column a repeat.
        between: further rates and their losses, tried to close in on the edge.
    """

    initial: float
    rates: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    between: tuple[tuple[float, tuple[float, ...]], ...] = ()

    @property
    def trainings(self) -> int:
        """How many trainings there were."""
        return sum(map(len, self.losses)) + sum(len(losses) for _, losses in self.between)

    def stable(self, losses: Sequence[float]) -> bool:
        """Whether none of a rate's repeats diverged.

        Args:
            losses: of the repeats.
        """
        return all(math.isfinite(each) and each <= self.initial for each in losses)

    @property
    def edge(self) -> tuple[float, float]:
        """The highest rate below the first that diverged, and that one; 0 and infinity where there is none."""
        low = 0.0
        for rate, losses in sorted([*zip(self.rates, self.losses, strict=True), *self.between]):
            if not self.stable(losses):
                return low, rate
            low = rate
        return low, math.inf

    def table(self) -> Table:
        """Every training: one row a rate, rising, one column a repeat."""
        rows = sorted([*zip(self.rates, self.losses, strict=True), *self.between])
        columns = tuple(f"repeat {k + 1}" for k in range(len(self.losses[0])))
        labels = tuple(f"{rate:.6g}" for rate, _ in rows)
        values = tuple(losses for _, losses in rows)
        return Table("learning-rate-sweep", 0, Unit.LOSS, labels, columns, values, self.trainings)


def sweep_learning_rates(
    train: Callable[[float], float],
    initial: float,
    *,
    low: float,
    high: float,
    points: int = 9,
    repeats: int = 1,
    refine: int = 4,
) -> Sweep:
    """Train at a grid of learning rates, then close in on where it begins to diverge.

    Args:
        train: trains from the start at a learning rate and gives the final loss, best a mean over some steps; a
            training that broke down gives NaN or infinity. With `repeats` it should draw other random numbers at
            every call.
        initial: ℓ₀, the loss before training or of guessing; a training that ends above it has diverged.
        low: lowest rate of the grid.
        high: highest.
        points: of the grid, two or more; evenly spread on a logarithmic scale.
        repeats: trainings at every rate.
        refine: bisections, on a logarithmic scale, between the last stable rate and the first that diverged.

    Returns:
        All losses.

    Raises:
        InputError: no rising grid, or an initial loss that is not finite.

    Example:
        >>> sweep = sweep_learning_rates(lambda rate: (1 - rate) ** 20, 1.0, low=0.25, high=4.0, points=5, refine=0)
        >>> sweep.rates, sweep.edge
        ((0.25, 0.5, 1.0, 2.0, 4.0), (2.0, 4.0))
    """
    if not 0 < low < high < math.inf or points < 2 or repeats < 1:
        raise InputError(
            "a grid of two learning rates or more, from low to high, each tried once or more",
            f"low={low:g}, high={high:g}, points={points}, repeats={repeats}",
            "type: low=1e-4, high=1.0, points=9",
        )
    if not math.isfinite(initial):
        raise InputError("a finite initial loss", f"{initial}", "give the loss before training, or of guessing: ln 10")

    def losses(rate: float) -> tuple[float, ...]:
        return tuple(float(train(rate)) for _ in range(repeats))

    rates = tuple(_between(low, high, k / (points - 1)) for k in range(points))
    sweep = Sweep(initial, rates, tuple(losses(rate) for rate in rates))
    for _ in range(refine):
        stable, diverged = sweep.edge
        if not 0 < stable < diverged < math.inf:
            break
        rate = math.sqrt(stable * diverged)
        sweep = Sweep(initial, rates, sweep.losses, (*sweep.between, (rate, losses(rate))))
    return sweep


def _between(low: float, high: float, share: float) -> float:
    return high if share == 1 else low * (high / low) ** share
