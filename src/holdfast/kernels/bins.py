"""Where the bins of the sketch lie: shared by both kernels and by `stats.sketch`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BINS = 64
"""How many bins: half below zero, half from zero on."""

WIDTH = 0.2
"""Width of a bin in asinh(x / scale): far from zero one bin spans a factor exp(0.2) = 1.22."""

EXPONENT_LIMIT = 1000
"""Scales lie between 2**-1000 and 2**1000, so that neither they nor their inverses leave float64's range."""


def _positive_edges() -> NDArray[np.float64]:
    """The edges above zero for scale 1: sinh(0.2 k), k = 1 … 32.

    Rounded to float32: a float32 value times a power of two compares with them exactly, in either precision.
    """
    edges = [math.sinh(WIDTH * k) for k in range(1, BINS // 2 + 1)]
    return np.array(edges, np.float32).astype(np.float64)


POSITIVE_EDGES: NDArray[np.float64] = _positive_edges()
"""32 edges; the last one only closes the outermost bin for drawing, nothing is ever compared with it."""

POSITIVE_EDGES.flags.writeable = False
