"""Log scale ratio: how far the spread of a site's values moved.

    |ln σ′ − ln σ|

What it sees:
    The change of the SD of all of a site's values together, as the logarithm of a ratio: 0.69 is a doubling or a
    halving. From moments alone, so from any two summaries of a stored run.

Why it matters:
    Growth or decay of the signal's scale is the commonest slow shift, and needs no samples to be seen.

When it is wrong:
    All features are one population: one that grows hides others that shrink, and features of unlike mean count as
    spread; for single features over the same inputs see scale-shift. Between batches of B values it scatters by about
    √((κ − 1)/2B), κ their kurtosis, and by more where values of a sample are alike. Over a stored run it compares
    *different batches* under *moved parameters*: observed drift and not internal covariate shift.

Example:
    >>> import math
    >>> log_scale_ratio(Moments(100, 0.0, 100.0, 0.0, 300.0), Moments(100, 2.0, 900.0, 0.0, 24300.0)) / math.log(3)
    1.0

References:
    Santurkar et al. 2018, "How does batch normalization help optimization?", section 2 (means and variances of a
    layer's input over training).
"""

from __future__ import annotations

import math

from holdfast.core.quantity import Quantity
from holdfast.core.units import Unit
from holdfast.measures.gaussian import require_spread
from holdfast.stats.moments import Moments

QUANTITY = Quantity("log-scale-ratio", "log scale ratio", Unit.LOG_RATIO, "neither")


def log_scale_ratio(reference: Moments, current: Moments) -> float:
    """|ln σ′ − ln σ|: how far the spread moved, in nats.

    Args:
        reference: the earlier moments.
        current: the later ones.

    Returns:
        In nats; 0.69 is a doubling or a halving.

    Raises:
        StatisticError: one of the two holds no data or does not vary.
    """
    require_spread(reference)
    require_spread(current)
    return abs(math.log(current.sd / reference.sd))
