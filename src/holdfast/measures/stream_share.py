"""Stream share: how much of what a fused layer computes comes from one of its streams.

    share_s = Σ cov(c_s, z) / Σ var(z),   z = Σ_s c_s,   c_s = W x_s

What it sees:
    The part of the variance of a layer's pre-activation z (over samples, summed over its elements) that one stream
    brings: x_s is the stream in its place in the sum or the concatenation, W the layer's weight. The shares of a fusion
    add up to 1. Without a linear layer behind, z is the sum or the concatenation itself.

Why it matters:
    A stream with a share near 0 has no say: the layer computes from the others. Where weights start equal, shares
    follow the squares of the streams' sizes, and training rarely makes up for a factor of ten.

When it is wrong:
    Variance is not use: a stream of noise has its share too, and a rare but decisive one has little. Streams that go
    together divide what they have in common evenly between them. Below 0 a stream takes away variance that another
    brings, above 1 another does that to it.

Example:
    >>> a, b = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.tensor([[3.0], [3.0], [-3.0], [-3.0]])
    >>> [reading.value for reading in stream_share([a, b], sites=[Site("head", "input", leaf=k) for k in "ab"], step=1)]
    [0.1, 0.9]

References:
    Genizi 1993, "Decomposition of R² in multiple regression with correlated regressors" (shares by covariance).
    Cochran 1977, "Sampling techniques", section 6.3 (the interval of a ratio).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.core.errors import StatisticError
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.student import student_975

QUANTITY = Quantity(
    "stream-share", "share of variance", Unit.FRACTION, "neither", (-math.inf, math.inf), "one extra forward"
)


@torch.no_grad()
def stream_share(contributions: Sequence[Tensor], *, sites: Sequence[Site], step: int) -> list[Reading]:
    """Shares of streams in the variance of what they make together.

    Args:
        contributions: what each stream brings, samples first, all of one shape; their sum is z.
        sites: where, one a stream.
        step: the step.

    Returns:
        One reading a stream with a 95 % interval (of a ratio, over samples); none below two samples, where nothing
        varies, or with values that are not finite.

    Raises:
        StatisticError: the contributions differ in shape.
    """
    if len({each.shape for each in contributions}) > 1:
        raise StatisticError(
            "contributions of one shape",
            " and ".join(str(tuple(each.shape)) for each in contributions),
            "give what each stream brings to the same output",
        )
    rows = [each.double().flatten(1) for each in contributions]
    if not rows or len(rows[0]) < 2:
        return []
    centred = [each - each.mean(0) for each in rows]
    whole = torch.stack(centred).sum(0)
    squares = whole.square().sum(1)  # of each sample
    total, samples = float(squares.sum()), len(squares)
    if not math.isfinite(total) or total <= 0:
        return []
    readings = []
    for site, part in zip(sites, centred, strict=True):
        products = (part * whole).sum(1)
        value = float(products.sum()) / total
        spread = float((products - value * squares).square().sum()) * samples / (samples - 1)
        half = student_975(samples - 1) * math.sqrt(spread) / total
        interval = value - half, value + half
        readings.append(Reading(QUANTITY.name, site, step, value, QUANTITY.unit, samples, interval=interval))
    return readings
