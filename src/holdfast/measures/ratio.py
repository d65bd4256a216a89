"""The ratio of two readings, with an interval from theirs."""

from __future__ import annotations

import math

from holdfast.core.reading import Reading


def ratio(over: Reading, under: Reading) -> tuple[float, tuple[float, float] | None]:
    """One reading over another.

    The interval combines the two on the logarithm, each side by its own (MOVER):
    ln r_low = ln r − √((ln a − ln a_low)² + (ln b_high − ln b)²), and likewise above. It has the level of the two
    where they are independent and is wider than needed where they rise and fall together, as readings of the same
    samples do.

    Args:
        over: the numerator.
        under: the denominator, above 0.

    Returns:
        The ratio and its interval; `None` for the interval when one of the two has none.

    Example:
        >>> from holdfast.core.site import Site
        >>> a = Reading("weight-norm", Site("fc", "weight"), 1, 4.0, "L2 norm", 9, interval=(2.0, 8.0))
        >>> b = Reading("weight-norm", Site("fc", "weight"), 1, 2.0, "L2 norm", 9, interval=(2.0, 2.0))
        >>> value, (low, high) = ratio(a, b)
        >>> value, round(low, 9), round(high, 9)
        (2.0, 1.0, 4.0)

    References:
        Donner & Zou 2012, "Closed-form confidence intervals for functions of the normal mean and standard
        deviation" (MOVER for ratios).
    """
    value = over.value / under.value
    if over.interval is None or under.interval is None:
        return value, None
    down = math.hypot(_log(over.value, over.interval[0]), _log(under.interval[1], under.value))
    up = math.hypot(_log(over.interval[1], over.value), _log(under.value, under.interval[0]))
    return value, (value * math.exp(-down), value * math.exp(up) if up < 700.0 else math.inf)


def _log(high: float, low: float) -> float:
    """How many nats lie between two ends; infinite from zero, none between equal ends."""
    if high <= low:
        return 0.0
    return math.log(high / low) if low > 0 else math.inf
