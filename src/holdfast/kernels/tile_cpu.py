"""The figures of a tile of finite float32 values: the loops in which nearly all of `block_cpu`'s time goes.

Written so that LLVM vectorises each: no branch, few arrays, no integer wider than the values. What is not finite shows
in the second power's sum, and is left to the careful loops of `block_cpu`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]

from holdfast.kernels.bins import CELL_BITS
from holdfast.kernels.native_cpu import OPTIONS, as_float32, float32_at, float64_at, int32_at, uint16_at, uint32_at

_SHIFT = np.uint32(23 - CELL_BITS)
_FIRST = (127 - 3) << CELL_BITS  # 2**-3: below the first edge; smaller values are counted there
_LAST = (127 + 8) << CELL_BITS  # 2**8: above the last inner edge; greater values are counted there
CELLS = _LAST - _FIRST + 1
LANES = 4  # of counts, so that equal neighbours do not wait for each other


@njit(**OPTIONS)
def gather_single(address, step, n, out_at):  # type: ignore[no-untyped-def]
    """Put n float32 that lie `step` apart side by side."""
    values = carray(float32_at(address), ((n - 1) * step + 1,))
    out = carray(float32_at(out_at), (n,))
    if step == 1:
        for i in range(n):
            out[i] = values[i]
    elif step == 2:
        for i in range(n):
            out[i] = values[2 * i]
    else:
        for i in range(n):
            out[i] = values[i * step]


@njit(**OPTIONS)
def gather_half(address, step, n, out_at):  # type: ignore[no-untyped-def]
    """The same of bfloat16, each the upper half of a float32."""
    values = carray(uint16_at(address), ((n - 1) * step + 1,))
    out = carray(uint32_at(out_at), (n,))
    if step == 1:
        for i in range(n):
            out[i] = np.uint32(values[i]) << np.uint32(16)
    else:
        for i in range(n):
            out[i] = np.uint32(values[i * step]) << np.uint32(16)


@njit(**OPTIONS)
def widen(at, n, out_at):  # type: ignore[no-untyped-def]
    """Float32 to float64."""
    values, out = carray(float32_at(at), (n,)), carray(float64_at(out_at), (n,))
    for i in range(n):
        out[i] = values[i]


@njit(**OPTIONS)
def total(at, n, centre):  # type: ignore[no-untyped-def]
    """Σ (x − centre)."""
    values = carray(float32_at(at), (n,))
    found = 0.0
    for i in range(n):
        found += values[i] - centre
    return found


@njit(**OPTIONS)
def powers(at, n, centre):  # type: ignore[no-untyped-def]
    """Σ (x − centre)ᵏ, k = 1 to 4."""
    values = carray(float32_at(at), (n,))
    one = two = three = four = 0.0
    for i in range(n):
        d = np.float64(values[i]) - centre
        square = d * d
        one += d
        two += square
        three += square * d
        four += square * square
    return one, two, three, four


@njit(**OPTIONS)
def scan(at, n, threshold):  # type: ignore[no-untyped-def]
    """Least and greatest value, and how many |x| are above the threshold.

    By way of integers in the same order: LLVM vectorises no minimum of floats, which may be NaN.
    """
    values, bits = carray(float32_at(at), (n,)), carray(int32_at(at), (n,))
    low, high = np.int32(2**31 - 1), np.int32(-(2**31))
    beyond = np.float32(0.0)  # exact to 2**24
    for i in range(n):
        key = np.int32(bits[i] ^ np.int32(np.int32(bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        low = key if key < low else low
        high = key if key > high else high
    if threshold < np.float32(math.inf):
        for i in range(n):
            beyond += np.float32(1.0) if abs(values[i]) > threshold else np.float32(0.0)
    return _value(low), _value(high), np.float64(beyond)


@njit(**OPTIONS)
def count_zeros(at, n):  # type: ignore[no-untyped-def]
    """How many values are zero."""
    values = carray(float32_at(at), (n,))
    zeros = np.float32(0.0)  # exact to 2**24
    for i in range(n):
        zeros += np.float32(1.0) if values[i] == np.float32(0.0) else np.float32(0.0)
    return np.float64(zeros)


@njit(**OPTIONS)
def _value(key):  # type: ignore[no-untyped-def]
    """The float32 of an integer of `scan`."""
    return np.float64(as_float32(np.uint32(key ^ np.int32(np.int32(key >> np.int32(31)) & np.int32(0x7FFFFFFF)))))


@njit(**OPTIONS)
def bin_values(at, n, exponent, work_at, lanes_at, table_at):  # type: ignore[no-untyped-def]
    """Count values by bin; the cell of a value, its exponent and first mantissa bits, leads to it by a table."""
    bits, found = carray(uint32_at(at), (n,)), carray(int32_at(work_at), (n,))
    offset = np.int32(exponent << CELL_BITS)
    for i in range(n):
        cell = np.int32(np.int32(np.uint32(bits[i] & np.uint32(0x7FFFFFFF)) >> _SHIFT) - offset)
        cell = np.int32(min(max(cell, np.int32(_FIRST)), np.int32(_LAST)) - np.int32(_FIRST))
        # −0 is a zero like the other
        below = np.int32(CELLS) if bits[i] > np.uint32(0x80000000) else np.int32(0)
        found[i] = np.int32(cell + below)
    # Unsigned: an index that might be negative costs as much as the count.
    cells, table = carray(uint32_at(work_at), (n,)), carray(uint32_at(table_at), (2 * CELLS,))
    lanes = carray(uint32_at(lanes_at), (LANES * 64,))
    whole = n - n % LANES
    for i in range(0, whole, LANES):
        k = np.uint64(i)
        lanes[np.uint64(table[np.uint64(cells[k])])] += np.uint32(1)
        lanes[np.uint64(64) + np.uint64(table[np.uint64(cells[k + np.uint64(1)])])] += np.uint32(1)
        lanes[np.uint64(128) + np.uint64(table[np.uint64(cells[k + np.uint64(2)])])] += np.uint32(1)
        lanes[np.uint64(192) + np.uint64(table[np.uint64(cells[k + np.uint64(3)])])] += np.uint32(1)
    for i in range(whole, n):
        lanes[np.uint64(table[np.uint64(cells[np.uint64(i)])])] += np.uint32(1)


@njit(**OPTIONS)
def add_row(at, n, pivot):  # type: ignore[no-untyped-def]
    """Σ (x − pivot), Σ (x − pivot)² and zeros of n values of one channel."""
    values = carray(float32_at(at), (n,))
    found = squares = zeros = 0.0
    for i in range(n):
        d = np.float64(values[i]) - pivot
        found += d
        squares += d * d
        zeros += 1.0 if values[i] == np.float32(0.0) else 0.0
    return found, squares, zeros


@njit(**OPTIONS)
def add_columns(at, rows, n, pivot_at, total_at, squares_at, zeros_at):  # type: ignore[no-untyped-def]
    """The same of each of n channels, whose values lie side by side in so many rows. Four rows at a time."""
    values = carray(float32_at(at), (rows * n,))
    pivots, totals = carray(float64_at(pivot_at), (n,)), carray(float64_at(total_at), (n,))
    squares, zeros = carray(float64_at(squares_at), (n,)), carray(float64_at(zeros_at), (n,))
    whole = rows - rows % 4
    for r in range(0, whole, 4):
        first, second, third, fourth = r * n, (r + 1) * n, (r + 2) * n, (r + 3) * n
        for i in range(n):
            pivot = pivots[i]
            a = np.float64(values[first + i]) - pivot
            b = np.float64(values[second + i]) - pivot
            c = np.float64(values[third + i]) - pivot
            d = np.float64(values[fourth + i]) - pivot
            totals[i] += (a + b) + (c + d)
            squares[i] += (a * a + b * b) + (c * c + d * d)
        for i in range(n):
            zeros[i] += (
                (1.0 if values[first + i] == np.float32(0.0) else 0.0)
                + (1.0 if values[second + i] == np.float32(0.0) else 0.0)
                + (1.0 if values[third + i] == np.float32(0.0) else 0.0)
                + (1.0 if values[fourth + i] == np.float32(0.0) else 0.0)
            )
    for r in range(whole, rows):
        for i in range(n):
            d = np.float64(values[r * n + i]) - pivots[i]
            totals[i] += d
            squares[i] += d * d
            zeros[i] += 1.0 if values[r * n + i] == np.float32(0.0) else 0.0


@njit(**OPTIONS)
def add_feature_row(at, n, row_total_at, pivot_at, first):  # type: ignore[no-untyped-def]
    """One sample's Σ (x − pivot) of each channel, of one position more."""
    values = carray(float32_at(at), (n,))
    pivots, row_total = carray(float64_at(pivot_at), (n,)), carray(float64_at(row_total_at), (n,))
    if first:
        for i in range(n):
            row_total[i] = np.float64(values[i]) - pivots[i]
    else:
        for i in range(n):
            row_total[i] += np.float64(values[i]) - pivots[i]
