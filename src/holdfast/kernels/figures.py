"""`BlockFigures`: what a kernel computes from one block."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float32, Float64, Int64
from torch import Tensor

TOTALS: tuple[str, ...] = (
    "n_finite",
    "mean",
    "m2",
    "m3",
    "m4",
    "min",
    "max",
    "zeros",
    "nan",
    "posinf",
    "neginf",
    "beyond",
)
"""Names of the entries of `BlockFigures.totals`, in order."""


class BlockFigures(NamedTuple):
    """The figures of one block of shape `(samples, channels, positions)`.

    NaN and ±inf are counted; every other figure is over the finite values. `m2`, `m3`, `m4` are sums of powers
    of the distance from the mean. With no finite value the mean is 0, `min` is inf and `max` is −inf.

    Args:
        totals: over the whole block, in the order of `TOTALS`; `beyond` counts |x| > threshold.
        channels: for each channel the count, mean, m2 and zeros.
        features: mean over positions; NaN where a sample has no finite value in a channel.
        bins: the asinh sketch's counts.
    """

    totals: Float64[Tensor, 12]
    channels: Float64[Tensor, "channels 4"]
    features: Float32[Tensor, "samples channels"]
    bins: Int64[Tensor, 64]
