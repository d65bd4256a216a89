"""Where the sketch's edges lie."""

import math

import numpy as np

from holdfast.kernels.bins import BINS, CELL_BITS, POSITIVE_EDGES, WIDTH


def test_edges_follow_the_hyperbolic_sine():
    want = [math.sinh(WIDTH * k) for k in range(1, BINS // 2 + 1)]
    np.testing.assert_allclose(POSITIVE_EDGES, want, rtol=2.0 ** -(CELL_BITS + 1))
    assert (np.diff(POSITIVE_EDGES) > 0).all()


def test_edges_are_starts_of_cells():
    # Sign, exponent and 5 mantissa bits decide a value's bin only if no edge has a later bit.
    bits = POSITIVE_EDGES.view(np.int64)
    assert not (bits & ((1 << (52 - CELL_BITS)) - 1)).any()
