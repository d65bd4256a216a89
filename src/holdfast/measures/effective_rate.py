"""Effective rate: the learning rate that the direction of a scale-invariant weight feels.

    η / ‖w‖²

What it sees:
    Learning rate over the squared norm of one weight in front of a normaliser. The gradient of such a weight is
    orthogonal to it and scales as 1/‖w‖, so a step of plain SGD turns it by η ‖g̃‖ / ‖w‖², g̃ the gradient at length 1.

Why it matters:
    A norm that grows lowers a layer's rate though the schedule does not (training that stalls), a norm that decay
    shrinks raises it (a run that destabilises late). Two runs compare by this rate, not by η. For the same reason norms
    of weight gradients that fall under a normaliser are not vanishing gradients: they scale as 1/‖w‖.

When it is wrong:
    For plain SGD; momentum μ multiplies it by 1/(1−μ); adaptive optimisers divide the gradient by its own size, and the
    rate that counts is η/‖w‖. Weights that no normaliser follows have no such rate. With ε beside σ² not small the
    weight is not scale-invariant.

Example:
    >>> import torch
    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    >>> effective_rate(weight, 0.1, site=Site("conv", "weight", leaf="weight"), step=1).value
    0.004

References:
    van Laarhoven 2017, "L2 regularization versus batch and weight normalization". Hoffer et al. 2018, "Norm matters".
"""

from __future__ import annotations

import math

from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.core.protocols import History
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.structure import Structure
from holdfast.core.units import Unit
from holdfast.live.moment import Moment
from holdfast.measures.l2_norm import l2_norm
from holdfast.measures.scale_invariance import scale_invariant
from holdfast.measures.weights import weight_site, weights_of

QUANTITY = Quantity("effective-rate", "effective rate", Unit.PER_SQUARED_NORM, "neither", logarithmic=True)


def effective_rate(
    weight: float | Tensor, rate: float, *, site: Site, step: int, n: int | None = None
) -> Reading | None:
    """Learning rate over the squared norm of a scale-invariant weight.

    Args:
        weight: the parameter, or its norm.
        rate: the learning rate of its group.
        site: where.
        step: the step.
        n: number of elements, where `weight` is a number.

    Returns:
        The rate; `None` where the weight is zero or not finite.

    Raises:
        InputError: the learning rate is negative or not finite.
        StatisticError: a number without `n`.
    """
    if not 0.0 <= rate < math.inf:
        raise InputError(
            "a learning rate of zero or more",
            f"{rate}",
            "type: rate=optimizer.param_groups[0]['lr']",
        )
    norm, count = l2_norm(weight, n)
    if not 0.0 < norm < math.inf:
        return None
    return Reading(QUANTITY.name, site, step, rate / norm / norm, QUANTITY.unit, count)


def take(moment: Moment) -> list[Reading]:
    """Effective rate of every scale-invariant weight that the optimiser steps.

    Args:
        moment: with the optimiser and the model's structure.

    Returns:
        One reading a weight; none where the structure, or the flow of data in it, is not known.
    """
    if moment.structure is None or moment.optimizer is None:
        return []
    rates = {id(each): float(group["lr"]) for group in moment.optimizer.param_groups for each in group["params"]}
    found = [
        effective_rate(now, rates[id(now)], site=weight_site(name, "weight", moment.stream), step=moment.step)
        for name, _, now in weights_of(moment, scale_invariant(moment.structure))
        if id(now) in rates
    ]
    return [reading for reading in found if reading is not None]


def over(history: History) -> list[Reading]:
    """Effective rates of a stored run, wherever a scale-invariant weight's norm was read.

    The rate kept at every step is that of the first parameter group; the other groups' are taken to keep the ratio to
    it that they had at the start.

    Args:
        history: of a run.

    Returns:
        One reading for each reading of a weight's norm.
    """
    found: list[Reading | None] = []
    for stream in history.streams():
        structure = history.structure(stream)
        if structure is None:
            continue
        rate = dict(zip(*(column.tolist() for column in history.values("learning-rate", stream)), strict=True))
        for name in scale_invariant(structure):
            ratio, site = _ratio(structure, name), weight_site(name, "weight", stream)
            found += [
                effective_rate(each.value, ratio * rate[each.step], site=site, step=each.step, n=each.n)
                for each in history.readings("weight-norm", site)
                if ratio is not None and each.step in rate
            ]
    return [reading for reading in found if reading is not None]


def _ratio(structure: Structure, name: str) -> float | None:
    """A parameter's learning rate over that of the first group, as they began; `None` where no group steps it."""
    group = next((each for each in structure.groups if name in each.parameters), None)
    if group is None:
        return None
    first, own = structure.groups[0].settings.get("lr"), group.settings.get("lr")
    if group is structure.groups[0]:
        return 1.0
    if not isinstance(first, int | float) or not isinstance(own, int | float) or not first > 0:
        return None
    return own / first
