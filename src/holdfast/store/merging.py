"""How figures of several ranks become one: what each port and each measure declares.

| what | how | why |
|---|---|---|
| summaries, statistics of channels | sum | ranks see different samples of one batch |
| gradient norm at a layer's output | root of the sum of squares | each rank holds the rows of its own samples; for a
rank that has none the others' mean square stands |
| norms of parameters, gradients, updates | the same, each element counted once | sharded, or the same on all ranks |
| update ratio | from its two norms | a ratio of shards is not the shards' ratio |
| dead units, collapsed features | the least | silent on all samples means silent on every rank |
| any other measure | mean, weighted by samples | estimates from different samples |
| loss, learning rate, values of your own | mean | the gradients are averaged alike |
| global gradient norm | root of the sum of squares where sharded, else the mean | as for parameters |
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from holdfast.core.errors import StatisticError
from holdfast.core.reading import Reading
from holdfast.core.statistic import Statistic
from holdfast.stats.summary import Summary

NORMS = frozenset({"gradient-norm", "weight-norm"})
"""Measures whose squares add up over the parts of a tensor."""

RATIOS = {"update-ratio": "weight-norm"}
"""Measures that are a norm over another: the other."""

LEAST = frozenset({"dead-units", "collapsed-features"})
"""Measures of the share of units that show something on no sample at all."""

SHARED_SAMPLES = frozenset({"batch-noise"})
"""Measures whose `n` is how many samples share a statistic, not how many were seen."""


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Weighted mean; of equal values that value itself, to the last bit.

    Args:
        values: at least one.
        weights: one each, not negative; all alike when `None` or when all are 0.

    Example:
        >>> mean([0.1, 0.1, 0.1]), mean([1.0, 4.0], [2.0, 1.0])
        (0.1, 2.0)
    """
    if all(value == values[0] for value in values):
        return values[0]
    weights = weights if weights is not None and sum(weights) > 0 else [1.0] * len(values)
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / math.fsum(weights)


def norm(values: Sequence[float], copies: int = 1) -> float:
    """Norm of a tensor from the norms of the parts that the ranks hold.

    Args:
        values: one a rank, of all ranks.
        copies: how many of the ranks hold each element.

    Example:
        >>> norm([3.0, 4.0]), norm([5.0, 5.0], copies=2)
        (5.0, 5.0)
    """
    if copies == len(values):
        return mean(values)
    return math.sqrt(math.fsum(value * value for value in values) / copies)


def reading(parts: Sequence[Reading], *, copies: int = 1, others: Sequence[Reading] = ()) -> Reading:
    """One measure at one site and step, of several ranks.

    Args:
        parts: one a rank.
        copies: of a parameter, how many of the ranks hold each element.
        others: for a ratio, the readings of what it is over, one a rank.

    Returns:
        The reading of all of them together.
    """
    first = parts[0]
    values = [each.value for each in parts]
    if first.measure in NORMS | RATIOS.keys():
        if copies == len(parts):
            value = mean(values)
        elif first.measure in NORMS:
            value = norm(values, copies)
        else:
            over = [each.value for each in others]
            # a rank with an empty shard has no ratio of its own
            changes = [ratio * size if size else 0.0 for ratio, size in zip(values, over, strict=True)]
            value = norm(changes, copies) / norm(over, copies) if any(over) else max(values)
        return replace(first, value=value, n=sum(each.n for each in parts) // copies)
    weights = [float(each.n) for each in parts]
    intervals = [each.interval for each in parts if each.interval is not None]
    floors = [each.noise_floor for each in parts if each.noise_floor is not None]
    return replace(
        first,
        value=min(values) if first.measure in LEAST else mean(values, weights),
        n=_samples(parts),
        interval=(mean([low for low, _ in intervals], weights), mean([high for _, high in intervals], weights))
        if len(intervals) == len(parts)
        else None,
        noise_floor=mean(floors, weights) if len(floors) == len(parts) else None,
    )


def _samples(parts: Sequence[Reading]) -> int:
    counts = [each.n for each in parts]
    # Ranks usually hold the same probe: no more is claimed than the largest.
    return max(counts) if parts[0].site.phase == "probe" or parts[0].measure in SHARED_SAMPLES else sum(counts)


def statistic(parts: Sequence[Statistic]) -> Statistic:
    """The statistic of what all ranks saw.

    Histograms of different scales (of a site's first observation, when the ranks had not agreed on one) cannot be
    added: the one with the most values stands for all. Statistics of channels of which there are unlike numbers cannot
    either: the first ones stay.

    Args:
        parts: one a rank.

    Returns:
        Their sum.
    """
    return functools.reduce(_added, parts)


def _added(a: Statistic, b: Statistic) -> Statistic:
    try:
        return a + b
    except StatisticError:
        if not isinstance(a, Summary) or not isinstance(b, Summary):
            return a
        sketch = max(a.sketch, b.sketch, key=operator.attrgetter("count"))
        return Summary(a.moments + b.moments, a.extremes + b.extremes, a.counts + b.counts, sketch)


Series = tuple[NDArray[np.int64], NDArray[np.float64]]


def values(parts: Sequence[Series], *, sharded: bool = False) -> Series:
    """A cheap series of several ranks.

    Args:
        parts: steps and values, one pair a rank.
        sharded: the values are norms of shards: of steps that all ranks have, the root of the sum of squares; else of
            all steps, the mean over the ranks that have them.

    Returns:
        Steps and values.
    """
    steps = functools.reduce(np.intersect1d if sharded else np.union1d, [steps for steps, _ in parts])
    table = np.full((len(parts), len(steps)), np.nan)
    has = np.zeros(table.shape, np.bool_)
    for row, (own, figures) in enumerate(parts):
        at = np.searchsorted(steps, own)
        found = (at < len(steps)) & (steps[np.minimum(at, len(steps) - 1)] == own) if len(steps) else at < 0
        table[row, at[found]], has[row, at[found]] = figures[found], True
    if sharded:
        return steps, np.sqrt((table**2).sum(0))
    with np.errstate(invalid="ignore"):  # inf − inf
        average = np.where(has, table, 0.0).sum(0) / np.maximum(has.sum(0), 1)
    first = table[has.argmax(0), np.arange(len(steps))]
    return steps, np.where(np.where(has, table == first, True).all(0), first, average)
