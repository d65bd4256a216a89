"""`Quantity`: what a measure declares about the figures it gives, so that displays need no branch per measure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from holdfast.core.units import Unit

Direction = Literal["higher is worse", "lower is worse", "nearer one is better", "neither"]
Cost = Literal[
    "free",
    "one pass over a sample",
    "one extra forward",
    "one extra forward and backward",
    "a forward per layer",
    "half a forward and backward per layer",
    "many forwards and backwards",
]


@dataclass(frozen=True, slots=True)
class Quantity:
    """Name, unit and bounds of one measure.

    Args:
        name: as in `Reading.measure`: lower case, words joined by hyphens.
        label: for an axis or a column.
        unit: of the value.
        direction: which way trouble lies.
        bounds: the least and the greatest possible value.
        cost: what one reading costs beside the training step.
        logarithmic: whether an axis over it should be logarithmic.
    """

    name: str
    label: str
    unit: Unit
    direction: Direction
    bounds: tuple[float, float] = (0.0, math.inf)
    cost: Cost = "free"
    logarithmic: bool = False
