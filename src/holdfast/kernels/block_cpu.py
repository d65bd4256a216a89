"""The figures of a block compiled by Numba for the CPU. Importing this file costs 0.2 s: `compiler` does it, late.

One sweep over the memory in tiles that stay in the first-level cache, by address and strides, without Python's lock.
Several threads share a large tensor in parts; `threads` lends them, no threading layer of Numba's does (after one
parallel Numba kernel every forked data loader worker that runs its own would die).

The file is long because one sweep has two ways through a tile, which fill the same sums: quick loops over finite
float32 (in `tile_cpu`), and careful ones in float64 for what is not finite, for float64 and for float16.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray

from holdfast.kernels.bins import BINS, CELL_BITS, POSITIVE_EDGES
from holdfast.kernels.native_cpu import (
    OPTIONS,
    as_float64,
    callback,
    float32_at,
    float64_at,
    int64_at,
    next_of,
    uint16_at,
    uint32_at,
)
from holdfast.kernels.tile_cpu import (
    LANES,
    add_columns,
    add_feature_row,
    add_row,
    bin_values,
    count_zeros,
    gather_half,
    gather_single,
    powers,
    scan,
    total,
    widen,
)

FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = range(4)

# Rows of the per-channel sums, all relative to the pivot; ROW_ is of one sample only.
PIVOT, TOTAL, SQUARES, ZEROS, MISSING, ROW_TOTAL, ROW_MISSING = range(7)

LONG = 128  # a row of so many positions is worth its own powers
TILE = 1024  # elements: 8 KB of float64, and three work arrays of that size or less, in a cache of 32 KB
# Words of a job: parts taken and parts there are; what is read and how, as `lens` says it; where from and where to.
(
    TAKEN, PARTS, KIND, SAMPLES, CHANNELS, POSITIONS, SAMPLE_STRIDE, CHANNEL_STRIDE, POSITION_STRIDE, SAMPLE_STEP,
    POSITION_STEP, SCALE, THRESHOLD, EXPONENT, SKETCHED, TENSOR, PHASE, VECTORS, TABLES, FEATURES, SEEN_SAMPLES,
    SEEN_POSITIONS, JOB,
) = range(23)  # fmt: skip

WIDTH = 14 + BINS  # figures of a summary as it is packed
HALF = BINS // 2
LARGEST = float(np.finfo(np.float64).max)

# A cell is the exponent and the first mantissa bits of a scaled value: every edge of the sketch is the start of one.
_CELL_SHIFT = 52 - CELL_BITS
_CELL_MASK = (1 << (11 + CELL_BITS)) - 1
_FIRST_CELL = (1023 - 3) << CELL_BITS  # 2**-3: below the first edge; smaller values are counted there
_LAST_CELL = (1023 + 8) << CELL_BITS  # 2**8: above the last inner edge; greater values are counted there
CELLS = _LAST_CELL - _FIRST_CELL + 1


def _cell_table() -> NDArray[np.int64]:
    """The bin of each cell: those from zero upwards, then those from zero downwards."""
    starts = (np.arange(_FIRST_CELL, _LAST_CELL + 1, dtype=np.int64) << _CELL_SHIFT).view(np.float64)
    first = np.searchsorted(POSITIVE_EDGES[:-1], starts, side="right")
    return np.concatenate([HALF + first, HALF - 1 - first])


CELL_BIN = _cell_table()
SINGLE_CELL_BIN = CELL_BIN.astype(np.int32)


@njit(**OPTIONS)
def _gather(kind, address, step, n, out_at, raw_at):  # type: ignore[no-untyped-def]
    """Widen n elements that lie `step` apart to float64. `raw_at` is room for n times 4 bytes."""
    out = carray(float64_at(out_at), (n,))
    reach = ((n - 1) * step + 1,)
    if kind == FLOAT32:
        values = carray(float32_at(address), reach)
        if step == 1:
            for i in range(n):
                out[i] = values[i]
        else:
            for i in range(n):
                out[i] = values[i * step]
    elif kind == FLOAT64:
        doubles = carray(float64_at(address), reach)
        for i in range(n):
            out[i] = doubles[i * step]
    elif kind == BFLOAT16:  # the upper half of a float32
        halves = carray(uint16_at(address), reach)
        raw = carray(uint32_at(raw_at), (n,))
        single = carray(float32_at(raw_at), (n,))
        for i in range(n):
            raw[i] = np.uint32(halves[i * step]) << np.uint32(16)
        for i in range(n):
            out[i] = single[i]
    else:
        _widen_float16(address, step, n, out_at, raw_at)


@njit(**OPTIONS)
def _widen_float16(address, step, n, out_at, raw_at):  # type: ignore[no-untyped-def]
    """Numba's CPU target has no float16: shift its fields into a float32's and mend the bias, 2**(127 − 15)."""
    out = carray(float64_at(out_at), (n,))
    halves = carray(uint16_at(address), ((n - 1) * step + 1,))
    raw = carray(uint32_at(raw_at), (n,))
    single = carray(float32_at(raw_at), (n,))
    for i in range(n):
        h = np.uint32(halves[i * step])
        raw[i] = ((h & np.uint32(0x7FFF)) << np.uint32(13)) | ((h & np.uint32(0x8000)) << np.uint32(16))
    for i in range(n):
        out[i] = single[i] * 2.0**112
    for i in range(n):
        h = np.int64(halves[i * step])  # type: ignore[assignment]
        field = h & 0x7C00
        if field == 0:  # subnormal: not by way of a float32 subnormal, which the processor may flush to zero
            value = (h & 0x3FF) * 2.0**-24
            out[i] = -value if h & 0x8000 else value
        elif field == 0x7C00:
            value = math.nan if h & 0x3FF else math.inf  # type: ignore[assignment]
            out[i] = -value if h & 0x8000 else value


@njit(**OPTIONS)
def _extremes(at, n):  # type: ignore[no-untyped-def]
    """Least and greatest of n finite values, by way of integers in the same order, whose minimum LLVM vectorises."""
    bits = carray(int64_at(at), (n,))
    low = np.int64(2**63 - 1)
    high = np.int64(-(2**63))
    for i in range(n):
        key = bits[i] ^ ((bits[i] >> 63) & np.int64(2**63 - 1))
        low = key if key < low else low
        high = key if key > high else high
    low ^= (low >> 63) & np.int64(2**63 - 1)
    high ^= (high >> 63) & np.int64(2**63 - 1)
    return as_float64(low), as_float64(high)


@njit(**OPTIONS)
def _merge(totals, n, centre, m2, m3, m4):  # type: ignore[no-untyped-def]
    """Pébay's update by n values, whose mean lies `centre` from the pivot, and their central sums."""
    before = totals[0]
    count = before + n
    alpha, beta = n / count, before / count
    delta = centre - totals[1] if before else 0.0
    square = delta * delta
    between = before * alpha
    totals[4] += (
        m4
        + between * (beta * beta - alpha * beta + alpha * alpha) * square * square
        + 6.0 * square * (beta * beta * m2 + alpha * alpha * totals[2])
        + 4.0 * delta * (beta * m3 - alpha * totals[3])
    )
    totals[3] += m3 + between * (beta - alpha) * square * delta + 3.0 * delta * (beta * m2 - alpha * totals[2])
    totals[2] += m2 + between * square
    totals[1] = totals[1] + alpha * delta if before else centre
    totals[0] = count


@njit(**OPTIONS)
def _add_totals(at, n, work_at, pivot, threshold, totals):  # type: ignore[no-untyped-def]
    """Merge finite values into the totals: mean and distances from it within the tile.

    Until the end `totals` holds the mean less the pivot: differences of tiles' means keep all their digits.
    """
    values = carray(float64_at(at), (n,))
    # Kept between the loops: the compiler would else subtract pivot + centre, rounded to the pivot's last place.
    distance = carray(float64_at(work_at), (n,))
    total = 0.0
    beyond = 0
    for i in range(n):
        distance[i] = values[i] - pivot
        total += distance[i]
    for i in range(n):
        beyond += abs(values[i]) > threshold
    low, high = _extremes(at, n)
    centre = total / n
    m2 = m3 = m4 = 0.0
    for i in range(n):
        d = distance[i] - centre
        square = d * d
        m2 += square
        m3 += square * d
        m4 += square * square

    _merge(totals, n, centre, m2, m3, m4)
    totals[5] = min(totals[5], low)
    totals[6] = max(totals[6], high)
    totals[11] += beyond


@njit(**OPTIONS)
def _add_single_totals(at, n, pivot, threshold, totals):  # type: ignore[no-untyped-def]
    """The same of float32 values, by sums of powers about the mean so far; False if some are not finite."""
    around = totals[1]
    if not totals[0]:
        around = total(at, n, pivot) / n
        if not abs(around) <= LARGEST:
            return False
    # A float32, so that its distance from the pivot is exact.
    centre = np.float64(np.float32(pivot + around))
    finite, _, _ = _add_powers(at, n, centre, pivot, threshold, totals)
    return finite


@njit(**OPTIONS)
def _add_powers(at, n, centre, pivot, threshold, totals):  # type: ignore[no-untyped-def]
    """Merge float32 values by their powers about a centre: whether they are finite, and the first two of the sums."""
    one, two, three, four = powers(at, n, centre)
    if not abs(two) <= LARGEST:
        return False, 0.0, 0.0
    low, high, beyond = scan(at, n, threshold)
    a = one / n
    square = a * a
    m2 = max(0.0, two - n * square)
    m3 = three - 3.0 * a * two + 2.0 * n * a * square
    m4 = max(0.0, four - 4.0 * a * three + 6.0 * square * two - 3.0 * n * square * square)
    _merge(totals, n, (centre - pivot) + a, m2, m3, m4)
    totals[5] = min(totals[5], low)
    totals[6] = max(totals[6], high)
    totals[11] += beyond
    return True, one, two


@njit(**OPTIONS)
def _add_single_channels(at, held, width, s, m, minor, start, wide, sums_at, features_at):  # type: ignore[no-untyped-def]
    """Rows along channels of finite float32 values; `features_at` is 0 when nobody wants them."""
    here, row = sums_at + 8 * start, 8 * wide
    add_columns(at, held, width, here, here + row * TOTAL, here + row * SQUARES, here + row * ZEROS)
    if not features_at:
        return
    for j in range(held):
        add_feature_row(at + 4 * j * width, width, here + row * ROW_TOTAL, here, m == 0)
        m += 1
        if m == minor:
            _finish_column(width, here, wide, minor, features_at + 4 * (s * wide + start))
            m = 0
            s += 1


@njit(**OPTIONS)
def _keep_feature(run, count, found, starts, ends, pivot, s, m, features):  # type: ignore[no-untyped-def]
    """One sample's mean of one channel, from a row that may come in pieces; `features` may have no rows."""
    if starts:
        run[0] = 0.0
        run[1] = 0.0
    run[0] += count
    run[1] += found
    if ends and features.shape[0]:
        features[s, m] = pivot + run[1] / run[0]  # 0 / 0 gives the NaN that is promised


@njit(**OPTIONS)
def _add_single_row(at, n, s, m, starts, ends, pivot, threshold, totals, sums, run, features):  # type: ignore[no-untyped-def]
    """Float32 values of one sample and one channel, for the totals and for the channel; False if some are not finite.

    One set of powers serves both: about the channel's pivot, which lies among its data.
    """
    finite, found, squares = _add_powers(at, n, sums[PIVOT, m], pivot, threshold, totals)
    if finite:
        sums[TOTAL, m] += found
        sums[SQUARES, m] += squares
        sums[ZEROS, m] += count_zeros(at, n)
        _keep_feature(run, n, found, starts, ends, sums[PIVOT, m], s, m, features)
    return finite


@njit(**OPTIONS)
def _add_single_positions(at, held, width, s, m, minor, starts, ends, sums, run, features):  # type: ignore[no-untyped-def]
    """Rows along positions of finite float32 values, each of one sample and one channel."""
    for j in range(held):
        found, squares, zeros = add_row(at + 4 * j * width, width, sums[PIVOT, m])
        sums[TOTAL, m] += found
        sums[SQUARES, m] += squares
        sums[ZEROS, m] += zeros
        _keep_feature(run, width, found, starts, ends, sums[PIVOT, m], s, m, features)
        m += 1
        if m == minor:
            m = 0
            s += 1


@njit(**OPTIONS)
def _gather_single(kind, address, first, held, minor, sample, leap, step, start, width, out_at):  # type: ignore[no-untyped-def]
    """Put rows side by side as float32."""
    for j in range(held):
        row = first + j
        offset = (row // minor) * sample + (row % minor) * leap + start * step
        if kind == FLOAT32:
            gather_single(address + 4 * offset, step, width, out_at + 4 * j * width)
        else:
            gather_half(address + 2 * offset, step, width, out_at + 4 * j * width)


@njit(**OPTIONS)
def _add_bins(at, n, inverse_scale, work_at, lanes_at):  # type: ignore[no-untyped-def]
    """Count finite values by cell, in four lanes of counts, so that equal neighbours do not wait for each other."""
    values = carray(float64_at(at), (n,))
    work = carray(float64_at(work_at), (n,))
    cells = carray(int64_at(work_at), (n,))
    lanes = carray(uint32_at(lanes_at), (4 * 2 * CELLS,))
    for i in range(n):
        work[i] = values[i] * inverse_scale
    for i in range(n):
        cell = min(max((cells[i] >> _CELL_SHIFT) & _CELL_MASK, _FIRST_CELL), _LAST_CELL) - _FIRST_CELL
        # −0 is a zero like the other; asked of the bits, since `OPTIONS` allow the compiler to confuse the two.
        below = 1 if cells[i] < 0 and cells[i] << 1 != 0 else 0
        cells[i] = cell + CELLS * below
    for i in range(n):
        lanes[np.uint64((i & 3) * 2 * CELLS + cells[i])] += np.uint32(1)


@njit(**OPTIONS)
def _sketched_rows(rows, minor, n, most):  # type: ignore[no-untyped-def]
    """Every how many rows one is sketched, so that about `most` of n elements are; all where that is 0.

    Coprime to the rows of a sample: from sample to sample it is another channel's (or position's) turn.
    """
    every = np.int64(1)
    if most > 0:
        every = max(every, min(n // most, rows // 8))
        while _divisor(every, minor) > 1:
            every -= 1
    return every


@njit(**OPTIONS)
def _divisor(a, b):  # type: ignore[no-untyped-def]
    """The greatest that two numbers have in common."""
    while b:
        a, b = b, a % b
    return a


@njit(**OPTIONS)
def _next_sketched(row, every, turn):  # type: ignore[no-untyped-def]
    """The first row from this one on whose turn it is."""
    return row + (turn - row % every + every) % every


@njit(**OPTIONS)
def _count_nonfinite(at, n):  # type: ignore[no-untyped-def]
    values = carray(float64_at(at), (n,))
    bad = 0
    for i in range(n):
        bad += not (abs(values[i]) <= LARGEST)
    return bad


@njit(**OPTIONS)
def _count_others(at, n, totals):  # type: ignore[no-untyped-def]
    """Count the values that are not finite, by kind."""
    for value in carray(float64_at(at), (n,)):
        if math.isnan(value):
            totals[8] += 1
        elif value > LARGEST:
            totals[9] += 1
        elif value < -LARGEST:
            totals[10] += 1


@njit(**OPTIONS)
def _copy_finite(at, n, clean_at):  # type: ignore[no-untyped-def]
    """Copy the finite values side by side; how many they are."""
    values = carray(float64_at(at), (n,))
    clean = carray(float64_at(clean_at), (n,))
    kept = 0
    for value in values:
        if abs(value) <= LARGEST:
            clean[kept] = value
            kept += 1
    return kept


@njit(**OPTIONS)
def _add_row(at, n, pivot, all_finite):  # type: ignore[no-untyped-def]
    """Count, Σ (x − pivot), Σ (x − pivot)² and zeros of n values of one channel."""
    values = carray(float64_at(at), (n,))
    total = squares = 0.0
    zeros = 0
    if all_finite:
        for i in range(n):
            d = values[i] - pivot
            total += d
            squares += d * d
            zeros += values[i] == 0.0
        return n, total, squares, zeros
    count = 0
    for value in values:
        if abs(value) <= LARGEST:
            d = value - pivot
            total += d
            squares += d * d
            zeros += value == 0.0
            count += 1
    return count, total, squares, zeros


@njit(**OPTIONS)
def _add_column(at, n, sums_at, channels, first):  # type: ignore[no-untyped-def]
    """The same for one finite value of each of n channels, into rows of sums that are `channels` long.

    Three short loops: LLVM vectorises none that touches six arrays.
    """
    values = carray(float64_at(at), (n,))
    pivots = carray(float64_at(sums_at), (n,))
    total = carray(float64_at(sums_at + 8 * channels * TOTAL), (n,))
    squares = carray(float64_at(sums_at + 8 * channels * SQUARES), (n,))
    zeros = carray(float64_at(sums_at + 8 * channels * ZEROS), (n,))
    row_total = carray(float64_at(sums_at + 8 * channels * ROW_TOTAL), (n,))
    for i in range(n):
        d = values[i] - pivots[i]
        total[i] += d
        squares[i] += d * d
    for i in range(n):
        zeros[i] += 1.0 if values[i] == 0.0 else 0.0
    if first:
        for i in range(n):
            row_total[i] = values[i] - pivots[i]
    else:
        for i in range(n):
            row_total[i] += values[i] - pivots[i]


@njit(**OPTIONS)
def _add_sparse_column(at, n, sums, start, first):  # type: ignore[no-untyped-def]
    """The same where some values are not finite."""
    values = carray(float64_at(at), (n,))
    for i in range(n):
        c = start + i
        if first:
            sums[ROW_TOTAL, c] = 0.0
        if abs(values[i]) <= LARGEST:
            d = values[i] - sums[PIVOT, c]
            sums[TOTAL, c] += d
            sums[SQUARES, c] += d * d
            sums[ZEROS, c] += 1.0 if values[i] == 0.0 else 0.0
            sums[ROW_TOTAL, c] += d
        else:
            sums[MISSING, c] += 1.0
            sums[ROW_MISSING, c] += 1.0


@njit(**OPTIONS)
def _finish_column(n, sums_at, channels, positions, features_at):  # type: ignore[no-untyped-def]
    """One sample's feature values: mean over its positions; 0 / 0 gives the NaN that is promised."""
    pivots = carray(float64_at(sums_at), (n,))
    row_total = carray(float64_at(sums_at + 8 * channels * ROW_TOTAL), (n,))
    row_missing = carray(float64_at(sums_at + 8 * channels * ROW_MISSING), (n,))
    features = carray(float32_at(features_at), (n,))
    for i in range(n):
        features[i] = pivots[i] + row_total[i] / (positions - row_missing[i])
    for i in range(n):
        row_missing[i] = 0.0


@njit(**OPTIONS)
def _find_pivots(kind, address, size, shape, strides, sums, one_at, raw_at):  # type: ignore[no-untyped-def]
    """The first finite value of each channel (0 where there is none); returns the first of all.

    Sums of x − p for a p among the data lose little: Σ (x − p)² ≤ (n + 1) Σ (x − mean)².
    """
    one = carray(float64_at(one_at), (1,))
    overall = 0.0
    found_any = False
    for c in range(shape[1]):
        found = False
        for s in range(shape[0]):
            for p in range(shape[2]):
                offset = s * strides[0] + c * strides[1] + p * strides[2]
                _gather(kind, address + size * offset, 1, 1, one_at, raw_at)
                if abs(one[0]) <= LARGEST:
                    sums[PIVOT, c] = one[0]
                    found = True
                    break
            if found:
                break
        if found and not found_any:
            overall = sums[PIVOT, c]
            found_any = True
    return overall


@njit(**OPTIONS)
def _add_position_rows(tile_at, held, width, s, m, minor, starts, ends, all_finite, sums, run, features):  # type: ignore[no-untyped-def]
    """Rows along positions, each of one sample and one channel. `run` holds count and sum of a row in pieces."""
    for j in range(held):
        n, total, squares, zeros = _add_row(tile_at + 8 * j * width, width, sums[PIVOT, m], all_finite)
        sums[TOTAL, m] += total
        sums[SQUARES, m] += squares
        sums[ZEROS, m] += zeros
        sums[MISSING, m] += width - n
        _keep_feature(run, n, total, starts, ends, sums[PIVOT, m], s, m, features)
        m += 1
        if m == minor:
            m = 0
            s += 1


@njit(**OPTIONS)
def _add_channel_rows(tile_at, held, width, s, m, minor, start, wide, all_finite, sums, sums_at, features_at):  # type: ignore[no-untyped-def]
    """Rows along channels, each of one sample and one position."""
    for j in range(held):
        if all_finite:
            _add_column(tile_at + 8 * j * width, width, sums_at + 8 * start, wide, m == 0)
        else:
            _add_sparse_column(tile_at + 8 * j * width, width, sums, start, m == 0)
        m += 1
        if m == minor:
            if features_at:
                _finish_column(width, sums_at + 8 * start, wide, minor, features_at + 4 * (s * wide + start))
            m = 0
            s += 1


@njit(**OPTIONS)
def _finish(values, sums, totals, channels):  # type: ignore[no-untyped-def]
    """From sums to figures of the channels. `values` is how many there are in each."""
    for c in range(sums.shape[1]):
        totals[7] += sums[ZEROS, c]
        count = values - sums[MISSING, c]
        over = sums[TOTAL, c] / count if count else 0.0
        channels[c, 0] = count
        channels[c, 1] = sums[PIVOT, c] + over
        channels[c, 2] = max(0.0, sums[SQUARES, c] - sums[TOTAL, c] * over)
        channels[c, 3] = sums[ZEROS, c]


@njit(**OPTIONS)
def _summarise(  # type: ignore[no-untyped-def]
    kind, address, shape, strides, exponent, scale, threshold, sketched, phase,
    room, lanes, few, sums, totals, channels, features, bins
):  # fmt: skip
    """Fill `totals`, `channels`, `features` and `bins` of a block that has at least one element.

    `room`: 4 tiles. `lanes`, `few`, `sums`, `totals`, `bins`: zeros. `features` may have no rows: nobody wants them.
    """
    size = 4 if kind == FLOAT32 else 8 if kind == FLOAT64 else 2
    wide = shape[1]
    # The helpers take addresses: handing them slices of arrays costs 50 ns a slice, in reference counts.
    # As int64: an unsigned address plus a signed offset would be a float64.
    tile_at = np.int64(room.ctypes.data)
    clean_at = tile_at + 8 * TILE
    work_at = clean_at + 8 * TILE
    raw_at = work_at + 8 * TILE  # its second half stays free: `run` lives at its end
    lanes_at, few_at, sums_at = np.int64(lanes.ctypes.data), np.int64(few.ctypes.data), np.int64(sums.ctypes.data)
    table_at = np.int64(SINGLE_CELL_BIN.ctypes.data)
    features_at = np.int64(features.ctypes.data) if features.shape[0] else np.int64(0)
    totals[5], totals[6] = math.inf, -math.inf
    # A float32 lies above the threshold if it lies above the float32 next below.
    above = np.float32(threshold)
    if above > threshold:
        above = np.nextafter(above, np.float32(-math.inf))
    # A scale so small that subnormal values would count by their bits is left to float64.
    single = kind in (FLOAT32, BFLOAT16) and exponent > -100
    pivot = _find_pivots(kind, address, size, shape, strides, sums, tile_at, raw_at)

    # Rows run along channels (one value a channel) or along positions (one channel), as the memory does.
    along_channels = shape[2] == 1 or (strides[1] < strides[2] and wide >= 8)
    length, minor = (wide, shape[2]) if along_channels else (shape[2], wide)
    step, leap = (strides[1], strides[2]) if along_channels else (strides[2], strides[1])
    rows = shape[0] * minor
    dense = (
        (step == 1 or length == 1)
        and (leap == length or minor == 1)
        and (strides[0] == length * minor or shape[0] == 1)
    )
    span = min(length, TILE)
    alone = single and not along_channels and length >= LONG
    per_tile = TILE // span if span == length and not alone else 1
    every = _sketched_rows(rows, minor, rows * length, sketched)
    turn = np.int64(phase * every)
    careful = False
    for first in range(0, rows, per_tile):
        held = min(per_tile, rows - first)
        s = first // minor
        m = first - s * minor
        for start in range(0, length, span):
            width = min(span, length - start)
            n = held * width
            ends = start + width == length
            if single:
                at = raw_at
                if dense and kind == FLOAT32:
                    at = address + 4 * (first * length + start)
                elif dense:
                    gather_half(address + 2 * (first * length + start), 1, n, at)
                else:
                    _gather_single(kind, address, first, held, minor, strides[0], leap, step, start, width, at)
                if alone:
                    finite = _add_single_row(
                        at, n, s, m, start == 0, ends, pivot, above, totals, sums, room[-2:], features
                    )
                else:
                    finite = _add_single_totals(at, n, pivot, above, totals)
                if finite:
                    if every == 1:
                        bin_values(at, n, exponent, work_at, few_at, table_at)
                    else:
                        for row in range(_next_sketched(first, every, turn), first + held, every):
                            bin_values(at + 4 * (row - first) * width, width, exponent, work_at, few_at, table_at)
                    if alone:
                        continue
                    if along_channels:
                        _add_single_channels(at, held, width, s, m, minor, start, wide, sums_at, features_at)
                    else:
                        _add_single_positions(at, held, width, s, m, minor, start == 0, ends, sums, room[-2:], features)
                    continue
                widen(at, n, tile_at)
            elif dense:
                _gather(kind, address + size * (first * length + start), 1, n, tile_at, raw_at)
            else:
                for j in range(held):
                    row = first + j
                    offset = (row // minor) * strides[0] + (row % minor) * leap + start * step
                    _gather(kind, address + size * offset, step, width, tile_at + 8 * j * width, raw_at)
            careful = True
            kept = n - _count_nonfinite(tile_at, n)
            kept_at = tile_at
            if kept < n:
                _copy_finite(tile_at, n, clean_at)
                _count_others(tile_at, n, totals)
                kept_at = clean_at
            if kept:
                _add_totals(kept_at, kept, work_at, pivot, threshold, totals)
            for row in range(_next_sketched(first, every, turn), first + held, every):
                whole = _copy_finite(tile_at + 8 * (row - first) * width, width, clean_at)
                _add_bins(clean_at, whole, scale, work_at, lanes_at)
            if along_channels:
                _add_channel_rows(tile_at, held, width, s, m, minor, start, wide, kept == n, sums, sums_at, features_at)
            else:
                _add_position_rows(
                    tile_at, held, width, s, m, minor, start == 0, ends, kept == n, sums, room[-2:], features
                )
    totals[1] += pivot
    for lane in range(LANES):
        for k in range(BINS):
            bins[k] += few[lane, k]
    _finish(shape[0] * shape[2], sums, totals, channels)
    if careful:
        for cell in range(2 * CELLS):
            bins[CELL_BIN[cell]] += np.int64(lanes[0, cell]) + lanes[1, cell] + lanes[2, cell] + lanes[3, cell]


@njit(**OPTIONS)
def _read(job, part, samples, first, positions, start):  # type: ignore[no-untyped-def]
    """One part of the samples that a window shows."""
    kind, wide, step, leap = job[KIND], job[CHANNELS], job[SAMPLE_STEP], job[POSITION_STEP]
    low, high = samples * part // job[PARTS], samples * (part + 1) // job[PARTS]
    size = 4 if kind == FLOAT32 else 8 if kind == FLOAT64 else 2
    address = job[TENSOR] + size * ((first + low * step) * job[SAMPLE_STRIDE] + start * job[POSITION_STRIDE])
    shape = high - low, wide, positions
    strides = job[SAMPLE_STRIDE] * step, job[CHANNEL_STRIDE], job[POSITION_STRIDE] * leap
    vector = carray(float64_at(job[VECTORS] + 8 * WIDTH * part), (WIDTH,))
    channels = carray(float64_at(job[TABLES] + 32 * wide * part), (wide, 4))
    features = carray(float32_at(job[FEATURES] + 4 * wide * low), (high - low if job[FEATURES] else 0, wide))

    room = np.empty(4 * TILE)
    lanes = np.zeros((4, 2 * CELLS), np.uint32)  # counts enough for 2**34 elements
    few = np.zeros((LANES, BINS), np.uint32)
    sums, totals, bins = np.zeros((7, wide)), np.zeros(12), np.zeros(BINS, np.int64)
    _summarise(
        kind, address, shape, strides, job[EXPONENT], as_float64(job[SCALE]), as_float64(job[THRESHOLD]),
        job[SKETCHED] // job[PARTS], as_float64(job[PHASE]),
        room, lanes, few, sums, totals, channels, features, bins
    )  # fmt: skip
    vector[:7], vector[8:13] = totals[:7], totals[7:]
    vector[7], vector[13] = (high - low) * wide * positions, job[EXPONENT]
    for k in range(BINS):
        vector[14 + k] = bins[k]


def _look(job_at):  # type: ignore[no-untyped-def]
    """Read the part of a tensor that a window shows at a phase, in parts, until none is left for this thread.

    Into the vectors go summaries as `Summary` packs them, into the tables four figures of each channel, one of either
    for each part; into the features (address 0: nobody wants them) those of all samples, and into the job how many
    samples and positions there are.
    """
    job = carray(int64_at(job_at), (JOB,))
    step, leap = job[SAMPLE_STEP], job[POSITION_STEP]
    phase = as_float64(job[PHASE])
    first, start = np.int64(phase * step), np.int64(phase * min(leap, job[POSITIONS]))
    samples, positions = (job[SAMPLES] - first + step - 1) // step, (job[POSITIONS] - start + leap - 1) // leap
    job[SEEN_SAMPLES], job[SEEN_POSITIONS] = samples, positions
    while True:
        part = next_of(job_at)  # type: ignore[call-arg, var-annotated]
        if part >= job[PARTS]:
            return
        _read(job, part, samples, first, positions, start)


def missing() -> bool:
    """Whether there is a cache to compile into, and nothing in it that is as new as the sources.

    Only a guess, from the files' times: where it is wrong, `build` compiles.
    """
    try:
        folder = Path(njit(cache=True, **OPTIONS)(_look).stats.cache_path)
    except (RuntimeError, OSError):
        return False
    sources = [path.stat().st_mtime for path in Path(__file__).parent.glob("*_cpu.py")]
    made = [path.stat().st_mtime for path in folder.glob(f"{Path(__file__).stem}.{_look.__name__}-*.nbi")]
    return max(made, default=0.0) < max(sources, default=0.0)


def build() -> int:
    """Compile, or load what an earlier process compiled.

    Returns:
        The address of `_look`, which takes the address of a job.
    """
    return callback(_look)
