"""Quantiles of Student's t, without loading `scipy.stats` during training."""

from __future__ import annotations

import math
from functools import lru_cache

NORMAL_975 = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution: the half width of a 95 % interval, in standard errors."""


@lru_cache(maxsize=1024)
def student_975(dof: int) -> float:
    """The 97.5th percentile of Student's t.

    P(|T| ≤ t) is a finite sum of cosines of θ = atan(t/√ν) for whole ν (Abramowitz & Stegun 26.7.3 and 26.7.4);
    it is solved for 0.95 by bisection over θ.

    Args:
        dof: degrees of freedom ν, from 1.

    Returns:
        The percentile.

    Example:
        >>> round(student_975(1), 3), round(student_975(9), 3), round(student_975(100_000), 3)
        (12.706, 2.262, 1.96)
    """
    if dof > 1000:
        # Cornish–Fisher (Abramowitz & Stegun 26.7.5): the next term is below 1e-6 here.
        return NORMAL_975 + (NORMAL_975**3 + NORMAL_975) / (4 * dof)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, dof) < 0.95 else (low, middle)
    return math.sqrt(dof) * math.tan(low)


def _central_probability(theta: float, dof: int) -> float:
    cosine_squared = math.cos(theta) ** 2
    odd = dof % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for k in range(dof // 2):
        total += term
        # 1·(1/2)·(3/4)… for even ν, 1·(2/3)·(4/5)… for odd ν
        term *= cosine_squared * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
