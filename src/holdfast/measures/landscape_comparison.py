"""Two models' landscapes side by side: at equal steps, and at equal losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from holdfast.core.errors import InputError
from holdfast.core.reading import Table
from holdfast.measures.landscape import Landscape

LEVELS = 8


def compare_landscapes(
    first: Sequence[Landscape],
    second: Sequence[Landscape],
    *,
    at: Literal["loss", "step"] = "loss",
    measure: str = "effective-smoothness",
) -> Table | None:
    """One figure of two models' landscapes over training, and its ratio.

    A model that learns faster is elsewhere in its landscape at the same step, and smoother for that alone; at the
    same loss two models have come equally far. Look at both.

    Args:
        first: landscapes of one model, in the order of training.
        second: of the other.
        at: `"step"`: at the steps that both have; `"loss"`: at eight losses, evenly spread on a logarithmic scale
            over what both went through (evenly on a plain scale where losses are not positive). There the figure is
            taken where the model first comes down to that loss, interpolated between two landscapes, the figure on a
            logarithmic scale.
        measure: the name of a reading.

    Returns:
        One row a step or a loss; columns `first`, `second` and `second / first`. `None` where the two have no step,
        or no range of losses, in common.

    Raises:
        InputError: no landscapes, or none with that reading.
    """
    for each in (first, second):
        if not each:
            raise InputError("landscapes of both models", "none", "type: seen.append(hf.measures.landscape(…))")
    if at == "step":
        sides = [{each.step: each.reading(measure).value for each in side} for side in (first, second)]
        rows = [float(step) for step in sides[0] if step in sides[1]]
        pairs = [(sides[0][int(step)], sides[1][int(step)]) for step in rows]
    else:
        curves = [_on_the_way_down(side, measure) for side in (first, second)]
        levels = _levels(curves[0][0], curves[1][0])
        rows = levels.tolist()
        pairs = list(zip(*(_interpolated(levels, *curve) for curve in curves), strict=True))
    if not rows:
        return None
    return Table(
        f"{measure} at equal {at}",
        max(each.step for each in (*first, *second)),
        str(first[0].reading(measure).unit),
        tuple(f"{row:.6g}" for row in rows),
        ("first", "second", "second / first"),
        tuple((a, b, b / a if a else math.nan) for a, b in pairs),
        min(each.losses.n for each in (*first, *second)),
    )


def _on_the_way_down(side: Sequence[Landscape], measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Losses that were lower than any before, and the figure at each."""
    losses: list[float] = []
    values: list[float] = []
    for each in side:
        if not losses or each.loss < losses[-1]:
            losses.append(each.loss)
            values.append(each.reading(measure).value)
    return np.array(losses), np.array(values)


def _levels(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Losses that both went through, from the highest to the lowest."""
    high, low = min(first[0], second[0]), max(first[-1], second[-1])
    if high < low:
        return np.array([])
    return np.geomspace(high, low, LEVELS) if low > 0 else np.linspace(high, low, LEVELS)


def _interpolated(levels: np.ndarray, losses: np.ndarray, values: np.ndarray) -> list[float]:
    with np.errstate(divide="ignore"):
        logs = np.log(values)
    # np.interp wants rising places
    return [float(np.exp(each)) for each in np.interp(-levels, -losses, logs)]
