"""The slope of a figure's logarithm over depth, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from holdfast.measures.student import student_975

LEAST_LAYERS = 3
"""Two points fix a line and leave nothing to judge it by."""


def depth_slope(values: Sequence[float | None]) -> tuple[float, tuple[float, float], int] | None:
    """Least-squares slope of ln(value) over depth, one layer a step.

    slope = Σ (l − l̄) ln v_l / Σ (l − l̄)², interval slope ± t₉₇.₅(L − 2) · √(residual variance / Σ (l − l̄)²).

    Args:
        values: one a layer, in the order of execution. A layer without a figure (`None`, zero, not finite) keeps its
            place and is left out.

    Returns:
        Slope in nats per layer, its 95 % interval, and how many layers entered; `None` below three layers.

    Example:
        >>> round(depth_slope([1.0, 2.0, 4.0, None, 16.0])[0] / math.log(2), 9)
        1.0
        >>> depth_slope([1.0, None, 4.0]) is None
        True
    """
    usable = [
        (depth, math.log(value)) for depth, value in enumerate(values) if value is not None and 0.0 < value < math.inf
    ]
    count = len(usable)
    if count < LEAST_LAYERS:
        return None
    depth, logarithm = np.array(usable).T
    depth = depth - depth.mean()
    squares = float(depth @ depth)
    slope = float(depth @ logarithm) / squares
    residual = logarithm - logarithm.mean() - slope * depth
    half = student_975(count - 2) * math.sqrt(float(residual @ residual) / (count - 2) / squares)
    return slope, (slope - half, slope + half), count
