"""Kolmogorov–Smirnov: the greatest gap between two distribution functions.

    D = sup_x |F(x) − G(x)|

What it sees:
    Any difference between two distributions of values, whatever their unit: D is 0.5 where half of one side's values
    lie below all of the other's. From samples it is exact. From sketches the distribution functions are known at the
    edges of the bins only: the figure is the greatest gap *there*, never above the true one, and short of it by at
    most `kolmogorov_smirnov_error`.

Why it matters:
    It needs no unit and no assumption, and changes with no monotone map of the values: log or not, it is the same.

When it is wrong:
    It is blind in the tails, where both functions are near 0 or 1, and it does not say how *far* anything moved: a
    spike of zeros that moves by a hair counts as a spike that moves by a mile. Where nothing moved it is about 1.2/√B
    between batches of B; positions within a sample are not samples: take p from `permutation_test`, not from a table.
    Over a stored run it compares *different batches* under *moved parameters*: observed drift and not internal
    covariate shift.

Example:
    >>> kolmogorov_smirnov(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 4.0, 5.0, 6.0]))
    0.5

References:
    Smirnov 1939, "On the estimation of the discrepancy between empirical curves of distribution for two independent
    samples".
"""

from __future__ import annotations

import numpy as np

from holdfast.core.quantity import Quantity
from holdfast.core.units import Unit
from holdfast.measures.sample import Sample, cumulative, values_of
from holdfast.stats.sketch import Sketch

QUANTITY = Quantity("kolmogorov-smirnov", "Kolmogorov–Smirnov", Unit.FRACTION, "neither", bounds=(0.0, 1.0))


def kolmogorov_smirnov(reference: Sample | Sketch, current: Sample | Sketch) -> float:
    """Sup |F − G|, from samples or from sketches.

    Args:
        reference: values `(samples,)`, or a sketch.
        current: the same kind; the number of samples may differ.

    Returns:
        Between 0 and 1; from sketches, the greatest gap at the edges of the bins.

    Raises:
        StatisticError: no data, values that are not finite, sketches of different scales, or a sketch and samples.
    """
    if isinstance(reference, Sketch) and isinstance(current, Sketch):
        first, second = cumulative(reference, current)
    else:
        x, y = np.sort(values_of(reference)), np.sort(values_of(current))
        every = np.concatenate([x, y])
        first, second = (np.searchsorted(each, every, side="right") / len(each) for each in (x, y))
    return float(np.abs(first - second).max())


def kolmogorov_smirnov_error(reference: Sketch, current: Sketch) -> float:
    """By how much the true gap may exceed that of two sketches, at most.

    Inside bin k, F lies between F_k and F_k+1 and G between G_k and G_k+1, so that the gap is at most
    max(F_k+1 − G_k, G_k+1 − F_k).

    Args:
        reference: the one sketch.
        current: the other.

    Returns:
        The greatest of these less the greatest gap at the edges; 1 less that gap where all values share a bin.

    Raises:
        StatisticError: no data, or sketches of different scales.

    Example:
        >>> sketch = Sketch(0, (0,) * 32 + (5, 15) + (0,) * 30)
        >>> kolmogorov_smirnov_error(sketch, sketch)
        0.75
    """
    first, second = cumulative(reference, current)
    inside = np.maximum(first[1:] - second[:-1], second[1:] - first[:-1]).max()
    return max(0.0, float(inside - np.abs(first - second).max()))
