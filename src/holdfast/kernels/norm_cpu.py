"""Normalisers of channels compiled by Numba for the CPU: statistics, output and both gradients of (N, C, S) tensors.

Memory lies in planes (contiguous: the S positions of one sample and channel side by side) or in columns
(channels_last: the C channels of one position side by side). Samples are cut into pieces of so many positions; every
sum is taken in one piece by one thread and pieces are merged in their order, so that the result has the same bits
whoever does the work. Sums are float64, values float32: one pass of x − p and (x − p)² with a p among the data loses
less than a factor n of float64's sixteen digits, because Σ (x − p)² ≤ (n + 1) Σ (x − mean)².

A statistic (k, g) belongs to the pieces from starts[k] to starts[k + 1] and to the channels of group g: one k for
BatchNorm, one a sample for InstanceNorm and GroupNorm, one a chunk for GhostBatchNorm.

The file is long because the passes of both layouts read one `Job`, whose fields mean nothing elsewhere.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from numba.np.unsafe.ndarray import to_fixed_tuple

from holdfast.kernels.native_cpu import (
    OPTIONS,
    as_float64,
    callback,
    elements,
    float32_at,
    float64_at,
    get,
    int64_at,
    next_of,
    put,
)

FUSED, SUMS, JOIN, MAP = range(4)
"""What a call does: everything, statistic by statistic, while its memory is in the cache; or one of the steps."""

STATISTICS, GROUPS, PIECES = range(3)
"""What the parts of a call are taken from."""


class Job(NamedTuple):
    """What the kernels are told: sizes, and the addresses of arrays (0 for none)."""

    kind: int
    """0 for float32, 1 for bfloat16."""
    planes: int
    """Whether positions lie side by side, not channels."""
    channels: int
    positions: int
    cut: int
    """Positions of a piece; the last of a sample may be shorter."""
    per_sample: int
    """Pieces of a sample."""
    pieces: int
    groups: int
    statistics: int
    starts: int
    """int64 (statistics + 1): where the pieces of each begin."""
    centre: int
    """Whether the mean is subtracted."""
    x: int
    y: int
    """The output; in the backward pass dx."""
    dy: int
    weight: int
    """float32 (channels)."""
    bias: int
    sums: int
    """float64 (2, pieces, channels): mean and m2; in the backward pass Σ dy and Σ dy · x̂."""
    moments: int
    """float64 (2, statistics, groups): mean and variance."""
    totals: int
    """float64 (2, statistics, channels), of the backward pass: Σ dy and Σ dy · x̂."""
    coefficients: int
    """float32 (5, statistics, channels): work space; shift, scale and offset of the output."""


RUN = 256  # elements of a plane whose float32 products go into a float64 sum: 16 or so to a vector's lane
TURN = 8  # rows of columns whose float32 sum goes into a float64 one
WIDE = 64  # elements, at least, of a row
LARGEST = float(np.finfo(np.float64).max)
TINY = 1e-25  # variance whose deviations have squares near the end of float32's range; matters where ε is less
FIELDS = len(Job._fields)
ORDER = FIELDS + 5


@njit(**OPTIONS)
def _plane_moments(kind, x_at, n):  # type: ignore[no-untyped-def]
    """Mean and sum of squared distances from it."""
    x = elements(kind, x_at, n)
    pivot = np.float64(get(x, 0))
    total = squares = 0.0
    for i in range(n):
        d = np.float64(get(x, i)) - pivot
        total += d
        squares += d * d
    over = total / n
    return pivot + over, max(0.0, squares - total * over)


@njit(**OPTIONS)
def _plane_map(kind, x_at, y_at, n, shift, scale, offset):  # type: ignore[no-untyped-def]
    x, y = elements(kind, x_at, n), elements(kind, y_at, n)
    for i in range(n):
        put(y, i, (get(x, i) - shift) * scale + offset)


@njit(**OPTIONS)
def _run_products(kind, x_at, dy_at, n, shift, rate):  # type: ignore[no-untyped-def]
    x, dy = elements(kind, x_at, n), elements(kind, dy_at, n)
    total = product = np.float32(0.0)
    for i in range(n):
        total += get(dy, i)
        product += get(dy, i) * ((get(x, i) - shift) * rate)
    return np.float64(total), np.float64(product)


@njit(**OPTIONS)
def _plane_products(kind, size, x_at, dy_at, n, shift, rate):  # type: ignore[no-untyped-def]
    """Σ dy and Σ dy · (x − shift) · rate; float32 within a run, for nothing is subtracted from these sums."""
    total = product = 0.0
    for start in range(0, n, RUN):
        one, two = _run_products(kind, x_at + size * start, dy_at + size * start, min(RUN, n - start), shift, rate)
        total += one
        product += two
    return total, product


@njit(**{**OPTIONS, "fastmath": {"contract", "nsz"}})  # reassociated, q · rate would leave float32's range at 1e30
def _plane_gradient(kind, x_at, dy_at, dx_at, n, shift, rate, p, q, r):  # type: ignore[no-untyped-def]
    x, dy, dx = elements(kind, x_at, n), elements(kind, dy_at, n), elements(kind, dx_at, n)
    for i in range(n):
        put(dx, i, p * get(dy, i) + (q * ((get(x, i) - shift) * rate) + r))


@njit(**OPTIONS)
def _wide(width):  # type: ignore[no-untyped-def]
    """So many elements are taken at once, a multiple of the channels: few channels alone would not fill a vector."""
    return width * max(1, WIDE // width)


@njit(**OPTIONS)
def _tiled(at, width, wide):  # type: ignore[no-untyped-def]
    """Coefficients of the channels, one for each of `wide` elements."""
    values = carray(float32_at(at), (width,))
    found = np.empty(wide, np.float32)
    for start in range(0, wide, width):
        found[start : start + width] = values
    return found


@njit(**OPTIONS)
def _folded(wide, width, out):  # type: ignore[no-untyped-def]
    out[:] = wide[:width]
    for start in range(width, len(wide), width):
        for c in range(width):
            out[c] += wide[start + c]


@njit(**OPTIONS)
def _column_sums(kind, size, x_at, n, shift):  # type: ignore[no-untyped-def]
    """Σ (x − shift) for each of as many columns as there are shifts, over n elements."""
    wide = len(shift)
    total = np.zeros(wide)
    done = 0
    for start in range(0, n - TURN * wide + 1, TURN * wide):
        x = elements(kind, x_at + size * start, TURN * wide)
        for i in range(wide):
            part = np.float32(0.0)
            for row in range(TURN):
                part += get(x, row * wide + i) - shift[i]
            total[i] += np.float64(part)
        done = start + TURN * wide
    for start in range(done, n, wide):
        x = elements(kind, x_at + size * start, wide)
        for i in range(min(wide, n - start)):
            total[i] += np.float64(get(x, i) - shift[i])
    return total


@njit(**OPTIONS)
def _column_squares(kind, size, x_at, n, shift):  # type: ignore[no-untyped-def]
    """The same of (x − shift)²."""
    wide = len(shift)
    total = np.zeros(wide)
    done = 0
    for start in range(0, n - TURN * wide + 1, TURN * wide):
        x = elements(kind, x_at + size * start, TURN * wide)
        for i in range(wide):
            part = np.float32(0.0)
            for row in range(TURN):
                d = get(x, row * wide + i) - shift[i]
                part += d * d
            total[i] += np.float64(part)
        done = start + TURN * wide
    for start in range(done, n, wide):
        x = elements(kind, x_at + size * start, wide)
        for i in range(min(wide, n - start)):
            d = get(x, i) - shift[i]
            total[i] += np.float64(d * d)
    return total


@njit(**OPTIONS)
def _column_moments(kind, size, x_at, rows, width, tiny, mean, m2):  # type: ignore[no-untyped-def]
    """The same for each of `width` columns; two passes, while the piece is in the cache."""
    wide = _wide(width)
    first = elements(kind, x_at, width)
    shift = np.empty(wide, np.float32)
    for i in range(wide):
        shift[i] = get(first, i % width)
    _folded(_column_sums(kind, size, x_at, rows * width, shift), width, mean)
    good = True
    for c in range(width):
        mean[c] = np.float64(get(first, c)) + mean[c] / rows
    for i in range(wide):
        shift[i] = mean[i % width]
    _folded(_column_squares(kind, size, x_at, rows * width, shift), width, m2)
    for c in range(width):
        left = mean[c] - np.float64(shift[c])
        m2[c] = max(0.0, m2[c] - rows * (left * left))
        good &= m2[c] <= LARGEST and (m2[c] >= TINY * rows or not tiny)
    if not good:  # squares beyond float32's range, or an infinity: once more in float64
        for c in range(width):
            mean[c], m2[c] = _slow_moments(kind, size, x_at + size * c, rows, width)


@njit(**OPTIONS)
def _slow_moments(kind, size, x_at, n, leap):  # type: ignore[no-untyped-def]
    """Mean and m2 of elements that lie apart, in float64."""
    pivot = np.float64(get(elements(kind, x_at, 1), 0))
    total = squares = 0.0
    for i in range(n):
        d = np.float64(get(elements(kind, x_at + size * i * leap, 1), 0)) - pivot
        total += d
        squares += d * d
    over = total / n
    return pivot + over, max(0.0, squares - total * over)


@njit(**OPTIONS)
def _column_map(kind, size, x_at, y_at, n, shift, scale, offset):  # type: ignore[no-untyped-def]
    wide = len(shift)
    for start in range(0, n, wide):
        x, y = elements(kind, x_at + size * start, wide), elements(kind, y_at + size * start, wide)
        for i in range(min(wide, n - start)):
            put(y, i, (get(x, i) - shift[i]) * scale[i] + offset[i])


@njit(**OPTIONS)
def _column_products(kind, size, x_at, dy_at, n, shift, rate):  # type: ignore[no-untyped-def]
    wide = len(shift)
    total, product = np.zeros(wide), np.zeros(wide)
    done = 0
    for start in range(0, n - TURN * wide + 1, TURN * wide):
        x, dy = elements(kind, x_at + size * start, TURN * wide), elements(kind, dy_at + size * start, TURN * wide)
        for i in range(wide):
            one = two = np.float32(0.0)
            for row in range(TURN):
                each = get(dy, row * wide + i)
                one += each
                two += each * ((get(x, row * wide + i) - shift[i]) * rate[i])
            total[i] += np.float64(one)
            product[i] += np.float64(two)
        done = start + TURN * wide
    for start in range(done, n, wide):
        x, dy = elements(kind, x_at + size * start, wide), elements(kind, dy_at + size * start, wide)
        for i in range(min(wide, n - start)):
            total[i] += np.float64(get(dy, i))
            product[i] += np.float64(get(dy, i) * ((get(x, i) - shift[i]) * rate[i]))
    return total, product


@njit(**{**OPTIONS, "fastmath": {"contract", "nsz"}})
def _column_gradient(kind, size, x_at, dy_at, dx_at, n, shift, rate, p, q, r):  # type: ignore[no-untyped-def]
    wide = len(shift)
    for start in range(0, n, wide):
        x, dy = elements(kind, x_at + size * start, wide), elements(kind, dy_at + size * start, wide)
        dx = elements(kind, dx_at + size * start, wide)
        for i in range(min(wide, n - start)):
            put(dx, i, p[i] * get(dy, i) + (q[i] * ((get(x, i) - shift[i]) * rate[i]) + r[i]))


@njit(**OPTIONS)
def _size(job):  # type: ignore[no-untyped-def]
    return np.int64(2 if job.kind else 4)


@njit(**OPTIONS)
def _place(job, sample, start, c):  # type: ignore[no-untyped-def]
    """Where the positions of a sample's channel begin, in elements from the tensor's start."""
    if job.planes:
        return (sample * job.channels + c) * job.positions + start
    return (sample * job.positions + start) * job.channels + c


@njit(**OPTIONS)
def _after(job, sample, start):  # type: ignore[no-untyped-def]
    """The next piece; a division for every piece would cost as much as a small one's sums."""
    start += job.cut
    return (sample + 1, 0) if start >= job.positions else (sample, start)


@njit(**OPTIONS)
def _piece(job, piece):  # type: ignore[no-untyped-def]
    """Its sample and first position."""
    sample = piece // job.per_sample
    return sample, (piece - sample * job.per_sample) * job.cut


@njit(**OPTIONS)
def _sums(kind, job, eps, p0, p1, c0, c1):  # type: ignore[no-untyped-def]
    """Mean and m2 of every channel's part of the pieces."""
    size = _size(job)
    sums = carray(float64_at(job.sums), (2, job.pieces, job.channels))
    sample, start = _piece(job, p0)
    for piece in range(p0, p1):
        n = min(job.cut, job.positions - start)
        x_at = job.x + size * _place(job, sample, start, c0)
        if job.planes:
            # Whole planes of a group lie side by side: summed as one, of which each channel is given its share.
            width = job.channels // job.groups if n == job.positions else 1
            for c in range(c0, c1, width):
                mean, m2 = _plane_moments(kind, x_at, n * width)
                sums[0, piece, c : c + width] = mean
                sums[1, piece, c : c + width] = m2 / width
                x_at += size * job.positions * width
        else:
            _column_moments(kind, size, x_at, n, job.channels, eps < TINY, sums[0, piece], sums[1, piece])
        sample, start = _after(job, sample, start)


@njit(**OPTIONS)
def _group_sums(values, width, factor, g0, g1, out):  # type: ignore[no-untyped-def]
    """Add factor times the sum of each group's channels."""
    if width == 1:
        for g in range(g0, g1):
            out[g] += factor * values[g]
    else:
        for g in range(g0, g1):
            total = 0.0
            for c in range(g * width, (g + 1) * width):
                total += values[c]
            out[g] += factor * total


@njit(**OPTIONS)
def _group_squares(mean, m2, width, n, centres, g0, g1, out):  # type: ignore[no-untyped-def]
    """Add the groups' squared distances from their centres, given each channel's mean and m2."""
    if width == 1:
        for g in range(g0, g1):
            d = mean[g] - centres[g]
            out[g] += m2[g] + n * (d * d)
    else:
        for g in range(g0, g1):
            total = 0.0
            for c in range(g * width, (g + 1) * width):
                d = mean[c] - centres[g]
                total += m2[c] + n * (d * d)
            out[g] += total


@njit(**OPTIONS)
def _join(job, eps, k, g0, g1):  # type: ignore[no-untyped-def]
    """Merge a statistic's pieces: mean and biased variance (or 0 and the mean square)."""
    sums = carray(float64_at(job.sums), (2, job.pieces, job.channels))
    moments = carray(float64_at(job.moments), (2, job.statistics, job.groups))
    starts = carray(int64_at(job.starts), (job.statistics + 1,))
    width = job.channels // job.groups
    means, squares = moments[0, k], moments[1, k]
    cells = 0.0
    for g in range(g0, g1):
        means[g] = squares[g] = 0.0
    sample, start = _piece(job, starts[k])
    for piece in range(starts[k], starts[k + 1]):
        n = np.float64(min(job.cut, job.positions - start))
        cells += n * width
        if job.centre:
            _group_sums(sums[0, piece], width, n, g0, g1, means)
        sample, start = _after(job, sample, start)
    for g in range(g0, g1):
        means[g] /= cells
    sample, start = _piece(job, starts[k])
    for piece in range(starts[k], starts[k + 1]):
        n = np.float64(min(job.cut, job.positions - start))
        _group_squares(sums[0, piece], sums[1, piece], width, n, means, g0, g1, squares)
        sample, start = _after(job, sample, start)
    for g in range(g0, g1):
        squares[g] /= cells


@njit(**OPTIONS)
def _output_coefficients(job, eps, k, g0, g1):  # type: ignore[no-untyped-def]
    """Of y = (x − shift) · scale + offset: x − shift is exact near the mean, what its rounding left is in offset."""
    moments = carray(float64_at(job.moments), (2, job.statistics, job.groups))
    coefficients = carray(float32_at(job.coefficients), (5, job.statistics, job.channels))
    shift, scale, offset = coefficients[0, k], coefficients[1, k], coefficients[2, k]
    weight = carray(float32_at(job.weight), (job.channels,))
    bias = carray(float32_at(job.bias), (job.channels,))
    width = job.channels // job.groups
    for g in range(g0, g1):
        mean, rate = moments[0, k, g], 1.0 / math.sqrt(moments[1, k, g] + eps)
        left = (np.float64(np.float32(mean)) - mean) * rate
        for c in range(g * width, (g + 1) * width):
            gain = np.float64(weight[c]) if job.weight else 1.0
            shift[c] = mean
            scale[c] = rate * gain
            offset[c] = left * gain + (bias[c] if job.bias else 0.0)


@njit(**OPTIONS)
def _map(kind, job, k, p0, p1, c0, c1):  # type: ignore[no-untyped-def]
    """The output, for those pieces of statistic k that lie from p0 to p1."""
    size, leap = _size(job), 4 * job.statistics * job.channels
    a = carray(float32_at(job.coefficients), (5, job.statistics, job.channels))
    starts = carray(int64_at(job.starts), (job.statistics + 1,))
    first = max(p0, starts[k])
    sample, start = _piece(job, first)
    wide, of = 0 if job.planes else _wide(job.channels), job.coefficients + 4 * k * job.channels
    shift, scale, offset = (
        _tiled(of, job.channels, wide), _tiled(of + leap, job.channels, wide), _tiled(of + 2 * leap, job.channels, wide)
    )  # fmt: skip
    for _ in range(first, min(p1, starts[k + 1])):
        n = min(job.cut, job.positions - start)
        to = size * _place(job, sample, start, c0)
        if job.planes:
            for c in range(c0, c1):
                _plane_map(kind, job.x + to, job.y + to, n, a[0, k, c], a[1, k, c], a[2, k, c])
                to += size * job.positions
        else:
            _column_map(kind, size, job.x + to, job.y + to, n * job.channels, shift, scale, offset)
        sample, start = _after(job, sample, start)


@njit(**OPTIONS)
def _forward_part(kind, job, step, eps, k0, k1, g0, g1, p0, p1):  # type: ignore[no-untyped-def]
    starts = carray(int64_at(job.starts), (job.statistics + 1,))
    width = job.channels // job.groups
    c0, c1 = g0 * width, g1 * width
    if step == SUMS:
        _sums(kind, job, eps, p0, p1, c0, c1)
        return
    for k in range(k0, k1):
        if step == FUSED:
            _sums(kind, job, eps, starts[k], starts[k + 1], c0, c1)
        if step in (FUSED, JOIN):
            _join(job, eps, k, g0, g1)
            _output_coefficients(job, eps, k, g0, g1)
        if step in (FUSED, MAP):
            _map(kind, job, k, p0, p1, c0, c1)


@njit(**OPTIONS)
def _prepare(job, eps, k, g0, g1):  # type: ignore[no-untyped-def]
    """The shift and rate of x̂, float32, for the products."""
    moments = carray(float64_at(job.moments), (2, job.statistics, job.groups))
    coefficients = carray(float32_at(job.coefficients), (5, job.statistics, job.channels))
    shift, rate = coefficients[0, k], coefficients[1, k]
    width = job.channels // job.groups
    for g in range(g0, g1):
        mean, over = moments[0, k, g], 1.0 / math.sqrt(moments[1, k, g] + eps)
        for c in range(g * width, (g + 1) * width):
            shift[c] = mean
            rate[c] = over


@njit(**OPTIONS)
def _products(kind, job, k, p0, p1, c0, c1):  # type: ignore[no-untyped-def]
    """Σ dy and Σ dy · (x − shift) · rate of every channel's part of the pieces."""
    size, leap = _size(job), 4 * job.statistics * job.channels
    a = carray(float32_at(job.coefficients), (5, job.statistics, job.channels))
    starts = carray(int64_at(job.starts), (job.statistics + 1,))
    sums = carray(float64_at(job.sums), (2, job.pieces, job.channels))
    first = max(p0, starts[k])
    sample, start = _piece(job, first)
    wide, of = 0 if job.planes else _wide(job.channels), job.coefficients + 4 * k * job.channels
    shift, rate = _tiled(of, job.channels, wide), _tiled(of + leap, job.channels, wide)
    for piece in range(first, min(p1, starts[k + 1])):
        n = min(job.cut, job.positions - start)
        to = size * _place(job, sample, start, c0)
        if job.planes:
            for c in range(c0, c1):
                found = _plane_products(kind, size, job.x + to, job.dy + to, n, a[0, k, c], a[1, k, c])
                sums[0, piece, c], sums[1, piece, c] = found
                to += size * job.positions
        else:
            total, product = _column_products(kind, size, job.x + to, job.dy + to, n * job.channels, shift, rate)
            _folded(total, job.channels, sums[0, piece])
            _folded(product, job.channels, sums[1, piece])
        sample, start = _after(job, sample, start)


@njit(**OPTIONS)
def _join_products(job, eps, k, g0, g1):  # type: ignore[no-untyped-def]
    """Merge the pieces' products, then the coefficients of dx = p · dy + q · x̂ + r.

    dx = (γ dy − mean(γ dy) − x̂ · mean(γ dy x̂)) / √(σ² + ε), the means over the cells of the statistic.
    """
    sums = carray(float64_at(job.sums), (2, job.pieces, job.channels))
    moments = carray(float64_at(job.moments), (2, job.statistics, job.groups))
    totals = carray(float64_at(job.totals), (2, job.statistics, job.channels))
    a = carray(float32_at(job.coefficients), (5, job.statistics, job.channels))
    starts = carray(int64_at(job.starts), (job.statistics + 1,))
    weight = carray(float32_at(job.weight), (job.channels,))
    width = job.channels // job.groups
    total, product = totals[0, k], totals[1, k]
    p, q, r = a[2, k], a[3, k], a[4, k]
    cells = 0.0
    for c in range(g0 * width, g1 * width):
        total[c] = product[c] = 0.0
    sample, start = _piece(job, starts[k])
    for piece in range(starts[k], starts[k + 1]):
        cells += width * min(job.cut, job.positions - start)
        one, two = sums[0, piece], sums[1, piece]
        for c in range(g0 * width, g1 * width):
            total[c] += one[c]
            product[c] += two[c]
        sample, start = _after(job, sample, start)
    for g in range(g0, g1):
        mean, rate = moments[0, k, g], 1.0 / math.sqrt(moments[1, k, g] + eps)
        left = (np.float64(np.float32(mean)) - mean) * rate  # of x̂, by the rounding of shift
        plain = along = 0.0
        for c in range(g * width, (g + 1) * width):
            product[c] += left * total[c]
            gain = np.float64(weight[c]) if job.weight else 1.0
            plain += gain * total[c]
            along += gain * product[c]
        slope = -rate * along / cells
        level = slope * left - (rate * plain / cells if job.centre else 0.0)
        for c in range(g * width, (g + 1) * width):
            p[c] = rate * weight[c] if job.weight else rate
            q[c] = slope
            r[c] = level


@njit(**OPTIONS)
def _gradient(kind, job, k, p0, p1, c0, c1):  # type: ignore[no-untyped-def]
    """dx, for those pieces of statistic k that lie from p0 to p1."""
    size, leap = _size(job), 4 * job.statistics * job.channels
    a = carray(float32_at(job.coefficients), (5, job.statistics, job.channels))
    starts = carray(int64_at(job.starts), (job.statistics + 1,))
    first = max(p0, starts[k])
    sample, start = _piece(job, first)
    wide, of = 0 if job.planes else _wide(job.channels), job.coefficients + 4 * k * job.channels
    shift, rate = _tiled(of, job.channels, wide), _tiled(of + leap, job.channels, wide)
    p, q, r = (
        _tiled(of + 2 * leap, job.channels, wide), _tiled(of + 3 * leap, job.channels, wide),
        _tiled(of + 4 * leap, job.channels, wide),
    )  # fmt: skip
    for _ in range(first, min(p1, starts[k + 1])):
        n = min(job.cut, job.positions - start)
        to = size * _place(job, sample, start, c0)
        if job.planes:
            for c in range(c0, c1):
                x_at, dy_at, dx_at = job.x + to, job.dy + to, job.y + to
                _plane_gradient(kind, x_at, dy_at, dx_at, n, a[0, k, c], a[1, k, c], a[2, k, c], a[3, k, c], a[4, k, c])
                to += size * job.positions
        else:
            x_at, dy_at, dx_at = job.x + to, job.dy + to, job.y + to
            _column_gradient(kind, size, x_at, dy_at, dx_at, n * job.channels, shift, rate, p, q, r)
        sample, start = _after(job, sample, start)


@njit(**OPTIONS)
def _backward_part(kind, job, step, eps, k0, k1, g0, g1, p0, p1):  # type: ignore[no-untyped-def]
    width = job.channels // job.groups
    c0, c1 = g0 * width, g1 * width
    for k in range(k0, k1):
        if step in (FUSED, SUMS):
            _prepare(job, eps, k, g0, g1)
            _products(kind, job, k, p0, p1, c0, c1)
        if step in (FUSED, JOIN):
            _join_products(job, eps, k, g0, g1)
        if step in (FUSED, MAP):
            _gradient(kind, job, k, p0, p1, c0, c1)


@njit(**OPTIONS)
def _share(kind, forward, order_at):  # type: ignore[no-untyped-def]
    """Do parts of a call until none is left; several threads may be at it."""
    order = carray(int64_at(order_at), (ORDER,))
    job = Job(*to_fixed_tuple(order, FIELDS))  # type: ignore[call-arg]
    eps = as_float64(order[FIELDS])
    step, source, parts = order[FIELDS + 1], order[FIELDS + 2], order[FIELDS + 3]
    whole = (job.statistics, job.groups, job.pieces)[source]
    while True:
        part = next_of(order_at + 8 * (FIELDS + 4))
        if part >= parts:
            return
        first, last = whole * part // parts, whole * (part + 1) // parts
        k0, k1 = (first, last) if source == STATISTICS else (np.int64(0), job.statistics)
        g0, g1 = (first, last) if source == GROUPS else (np.int64(0), job.groups)
        p0, p1 = (first, last) if source == PIECES else (np.int64(0), job.pieces)
        if forward:
            _forward_part(kind, job, step, eps, k0, k1, g0, g1, p0, p1)
        else:
            _backward_part(kind, job, step, eps, k0, k1, g0, g1, p0, p1)


def _forward(order_at):  # type: ignore[no-untyped-def]
    _share(np.float32(0), True, order_at)


def _forward_half(order_at):  # type: ignore[no-untyped-def]
    _share(np.uint16(0), True, order_at)


def _backward(order_at):  # type: ignore[no-untyped-def]
    _share(np.float32(0), False, order_at)


def _backward_half(order_at):  # type: ignore[no-untyped-def]
    _share(np.uint16(0), False, order_at)


def build(half: bool) -> tuple[int, int]:
    """Compile both passes of a type, or load what an earlier process compiled.

    Args:
        half: for bfloat16, else for float32.

    Returns:
        The addresses of the functions for the forward and the backward pass, each of one argument: the address of an
        `order`.
    """
    if half:
        return callback(_forward_half), callback(_backward_half)
    return callback(_forward), callback(_backward)
