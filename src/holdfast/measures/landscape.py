"""The loss landscape of one batch along its own gradient, with random directions for contrast.

Points θ − s g at eight step sizes s from half to four times the learning rate, all of them on the same batch with the
same random numbers; the model is left as it was.

References:
    Santurkar et al. 2018, "How does batch normalization help optimization?", section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from holdfast.core.errors import InputError
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading, Table
from holdfast.core.site import Site
from holdfast.live.moment import Moment
from holdfast.live.objective import Objective, norm
from holdfast.live.replay import Mode
from holdfast.measures.descent import Descent, descend
from holdfast.measures.effective_smoothness import QUANTITY as _SMOOTHNESS
from holdfast.measures.effective_smoothness import effective_smoothness
from holdfast.measures.gradient_predictiveness import QUANTITY as _PREDICTIVENESS
from holdfast.measures.gradient_predictiveness import gradient_predictiveness
from holdfast.measures.loss_variation import QUANTITY as _VARIATION
from holdfast.measures.loss_variation import loss_variation
from holdfast.measures.relative_gradient_change import relative_gradient_change

MULTIPLES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Of the learning rate: eight step sizes, as published."""


@dataclass(frozen=True, slots=True)
class Landscape:
    """What one batch's loss looks like within reach of a step.

    Args:
        loss: where the model stands.
        gradient_norm: where the model stands.
        losses: one row a step size; the first column along −g, then one for each random direction.
        changes: change of the gradient, laid out likewise.
        slopes: change of the gradient per way, laid out likewise.
        readings: loss variation, gradient predictiveness, relative gradient change and effective smoothness along −g.
        contrast: the same four along each random direction, one after the other.
    """

    loss: float
    gradient_norm: float
    losses: Table
    changes: Table
    slopes: Table
    readings: tuple[Reading, ...]
    contrast: tuple[Reading, ...] = ()

    @property
    def step(self) -> int:
        """The optimiser step."""
        return self.losses.step

    def reading(self, measure: str) -> Reading:
        """One of the readings along −g.

        Args:
            measure: its name, such as `"effective-smoothness"`.

        Returns:
            The reading.

        Raises:
            InputError: there is none of that name.
        """
        for each in self.readings:
            if each.measure == measure:
                return each
        names = " | ".join(each.measure for each in self.readings)
        raise InputError("the name of one of the landscape's readings", repr(measure), f"choose: {names}")


def landscape(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batch: Any,
    *,
    learning_rate: float,
    mode: Mode = "as it was",
    directions: int = 2,
    seed: int = 0,
    step: int = 0,
    site: Site | None = None,
) -> Landscape | None:
    """Walk along −g and along random directions of the same length; 8 forwards and backwards each.

    Args:
        model: the model, which stays as it is.
        loss_fn: `(output, targets)` → a scalar.
        batch: `(inputs, targets)`; inputs as the model takes them: a tuple for several, a dictionary by name.
        learning_rate: η; steps go from ½ η g to 4 η g. For an optimiser that does not step along −g, such as Adam:
            the length of its step over ‖g‖.
        mode: how normalisers and dropout run: `"train"`, `"eval"`, or as the modules' flags say.
        directions: how many random ones (Gaussian, of the gradient's length) for contrast.
        seed: of the private generator that draws them.
        step: the optimiser step, to note.
        site: where to note it; the model's root when `None`.

    Returns:
        Tables and readings; `None` where loss or gradient are not finite, or the gradient is zero.

    Raises:
        InputError: no positive learning rate; what `Objective` refuses.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 3.0)
        >>> batch = (torch.ones(4, 1), torch.zeros(4, 1))              # L = w²: H = 2
        >>> seen = landscape(layer, nn.functional.mse_loss, batch, learning_rate=0.01)
        >>> round(seen.reading("effective-smoothness").value, 5), seen.losses.rows[0]
        (2.0, '0.005')
    """
    if not learning_rate > 0:
        raise InputError("a learning rate above 0", f"{learning_rate:g}", "type: learning_rate=0.1")
    objective = Objective(model, loss_fn, batch, mode=mode)
    start = objective.at()
    length = norm(start.gradient)
    if not (start.finite and length > 0):
        return None
    sizes = tuple(multiple * learning_rate for multiple in MULTIPLES)
    lines = [tuple(-each for each in start.gradient), *_random(start.gradient, length, directions, seed)]
    paths = [descend(objective, start, line, sizes) for line in lines]
    where = site or Site("", "weight")
    rows = tuple(f"{size:.6g}" for size in sizes)
    columns = ("-gradient", *(f"random {k + 1}" for k in range(directions)))

    def table(quantity: Quantity, values: Sequence[Sequence[float]]) -> Table:
        cells = tuple(zip(*values, strict=True))
        return Table(quantity.name, step, quantity.unit, rows, columns, cells, objective.samples)

    return Landscape(
        start.loss,
        length,
        table(_VARIATION, [path.losses for path in paths]),
        table(_PREDICTIVENESS, [path.changes for path in paths]),
        table(_SMOOTHNESS, [path.slopes for path in paths]),
        _readings(paths[0], where, step),
        tuple(reading for path in paths[1:] for reading in _readings(path, where, step)),
    )


def take(moment: Moment) -> list[Reading | Table]:
    """The landscape at one step of training, without random directions.

    Steps are in units of what the optimiser really stepped: the learning rate under SGD, otherwise the length
    of the last update over ‖g‖.

    Args:
        moment: with a batch and its loss; with the optimiser or with the parameters before the step.

    Returns:
        Readings and tables; none where the length of a step is not known, or loss or gradient are not finite.
    """
    if moment.batch is None or moment.loss_fn is None:
        return []
    rate = _step_size(moment)
    if rate is None:
        return []
    site = Site("", "weight", stream=moment.stream)
    found = landscape(
        moment.model, moment.loss_fn, moment.batch, learning_rate=rate, directions=0, step=moment.step, site=site
    )
    return [] if found is None else [*found.readings, found.losses, found.changes, found.slopes]


def _step_size(moment: Moment) -> float | None:
    optimizer, before = moment.optimizer, moment.before
    if type(optimizer) is SGD and len({float(group["lr"]) for group in optimizer.param_groups}) == 1:
        rate = float(optimizer.param_groups[0]["lr"])
        return rate if rate > 0 else None
    if before is None:
        return None
    with torch.no_grad():
        update = [p - before[name].to(p) for name, p in moment.model.named_parameters() if name in before]
    assert moment.batch is not None
    gradient = norm(Objective(moment.model, moment.loss_fn, moment.batch).at().gradient)
    length = norm(update)
    return length / gradient if gradient > 0 and length > 0 else None


def _random(gradient: Sequence[Tensor], length: float, directions: int, seed: int) -> list[tuple[Tensor, ...]]:
    """Directions drawn evenly from the sphere, as long as the gradient."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(directions):
        direction = [torch.randn(each.shape, generator=generator).to(each) for each in gradient]
        scale = length / norm(direction)
        drawn.append(tuple(each * scale for each in direction))
    return drawn


def _readings(path: Descent, site: Site, step: int) -> tuple[Reading, ...]:
    found = (
        loss_variation(path, site=site, step=step),
        gradient_predictiveness(path, site=site, step=step),
        relative_gradient_change(path, site=site, step=step),
        effective_smoothness(path, site=site, step=step),
    )
    return tuple(each for each in found if each is not None)
