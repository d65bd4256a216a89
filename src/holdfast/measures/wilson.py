"""`wilson`: the interval of a share."""

from __future__ import annotations

import math

from holdfast.measures.student import NORMAL_975


def wilson(p: float, n: int) -> tuple[float, float]:
    """Ends of {p₀ : (p − p₀)² ≤ z² p₀ (1 − p₀) / n}, a 95 % interval of the share that p estimates.

    Args:
        p: the share found.
        n: of how many independent cases.

    Example:
        >>> [round(end, 3) for end in wilson(0.0, 20)]
        [0.0, 0.161]

    References:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    z2 = NORMAL_975**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * p * (1 - p) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))
