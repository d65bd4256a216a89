"""Where the bins of the sketch lie: shared by both kernels and by `stats.sketch`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 64
"""How many bins: half below zero, half from zero on."""

WIDTH = 0.2
"""Width of a bin in asinh(x / scale): far from zero one bin spans a factor exp(0.2) = 1.22."""

EXPONENT_LIMIT = 1000
"""Scales lie between 2**-1000 and 2**1000, so that neither they nor their inverses leave float64's range."""


CELL_BITS = 5
"""Edges have this many bits after the leading one: sign, exponent and 5 mantissa bits of a number give its bin."""


def _positive_edges() -> NDArray[np.float64]:
    """The edges above zero for scale 1: sinh(0.2 k), k = 1 … 32, rounded to 1 + 5 bits (by 1.6 % at most).

    The kernel then counts by the leading bits alone, without a logarithm or a comparison, and every float type
    gives the same bins.
    """
    fraction, exponent = np.frexp(np.sinh(WIDTH * np.arange(1, BINS // 2 + 1)))
    return np.ldexp(np.round(np.ldexp(fraction, CELL_BITS + 1)), exponent - CELL_BITS - 1)


POSITIVE_EDGES: NDArray[np.float64] = _positive_edges()
"""32 edges; the last one only closes the outermost bin for drawing, nothing is ever compared with it."""

POSITIVE_EDGES.flags.writeable = False
