"""Jensen–Shannon: how much a value tells about which of two distributions it came from.

    JS = H((p + q) / 2) − (H(p) + H(q)) / 2        in nats, over the 64 bins of the sketches

What it sees:
    0 where both sketches hold the same shares, ln 2 = 0.693 where no bin holds values of both. It is the information
    that the bin of a value carries about its side, and the mean of the two Kullback–Leibler divergences from the
    mixture: finite whatever is empty.

Why it matters:
    Bounded and without a unit, it compares layers of any scale, and sees changes of shape.

When it is wrong:
    Binning loses what happens inside bins: the figure is never above that of the values themselves. Where nothing
    moved it is about (bins in use − 1) (1/n + 1/m) / 8 for n and m independent values, and more where the values of a
    sample are alike. Once two distributions are apart it does not say how far. Over a stored run it compares
    *different batches* under *moved parameters*: observed drift and not internal covariate shift.

Example:
    >>> left, right = Sketch(0, (0,) * 20 + (4,) + (0,) * 43), Sketch(0, (0,) * 40 + (9,) + (0,) * 23)
    >>> jensen_shannon(left, left), round(jensen_shannon(left, right), 6)
    (0.0, 0.693147)

References:
    Lin 1991, "Divergence measures based on the Shannon entropy".
"""

from __future__ import annotations

import math

import numpy as np

from holdfast.core.quantity import Quantity
from holdfast.core.units import Unit
from holdfast.measures.sample import cumulative
from holdfast.stats.sketch import Sketch

QUANTITY = Quantity("jensen-shannon", "Jensen–Shannon", Unit.LOG_RATIO, "neither", bounds=(0.0, math.log(2)))


def jensen_shannon(reference: Sketch, current: Sketch) -> float:
    """Jensen–Shannon divergence of two sketches.

    Args:
        reference: the one.
        current: the other, of the same scale.

    Returns:
        In nats, between 0 and ln 2.

    Raises:
        StatisticError: no data, or sketches of different scales.
    """
    p, q = (np.diff(each) for each in cumulative(reference, current))
    used = p + q > 0
    p, q = p[used], q[used]
    # p ln(2p/(p+q)) as a whole: entropies would be subtracted from each other and lose digits.
    divergence = sum(float(each @ np.log(np.where(each > 0, 2 * each / (p + q), 1.0))) for each in (p, q)) / 2
    return min(max(divergence, 0.0), math.log(2))
