"""LayerNorm and RMSNorm compiled by Numba for the CPU: rows of elements side by side, one statistic a row.

A row is read once from memory and stays in the cache until its output is written. Its sums are float64, its values
float32. Rows are cut into blocks, whose number depends on the size alone: each block leaves its share of the
parameters' gradients, and the shares are added in their order, so that the result has the same bits whoever does the
work.
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

RUN = 512  # elements of a row whose float32 products go into a float64 sum: 32 or so to a vector's lane
FLUSH = 32  # rows whose float32 shares of a parameter's gradient go into the float64 one


class RowJob(NamedTuple):
    """What the kernels are told: sizes, and the addresses of arrays (0 for none)."""

    kind: int
    """0 for float32, 1 for bfloat16."""
    rows: int
    width: int
    block: int
    """Rows of a block; the last may be shorter."""
    centre: int
    """Whether the mean is subtracted."""
    x: int
    y: int
    """The output; in the backward pass dx."""
    dy: int
    weight: int
    """float32 (width)."""
    bias: int
    moments: int
    """float64 (2, rows): mean and biased variance, or 0 and the mean square."""
    shares: int
    """float64 (2, blocks, width), of the backward pass: Σ dy and Σ dy · x̂."""


FIELDS = len(RowJob._fields)
ORDER = FIELDS + 5


@njit(**OPTIONS)
def _row_moments(kind, x_at, n, centre):  # type: ignore[no-untyped-def]
    """Mean and biased variance; or 0 and the mean square."""
    x = elements(kind, x_at, n)
    total = squares = 0.0
    if not centre:
        for i in range(n):
            d = np.float64(get(x, i))
            squares += d * d
        return 0.0, squares / n
    pivot = np.float64(get(x, 0))  # Σ (x − p)² ≤ (n + 1) Σ (x − mean)² for a p among the data: little is lost
    for i in range(n):
        d = np.float64(get(x, i)) - pivot
        total += d
        squares += d * d
    over = total / n
    return pivot + over, max(0.0, squares / n - over * over)


@njit(**OPTIONS)
def _row_map(kind, job, x_at, y_at, mean, rate):  # type: ignore[no-untyped-def]
    x, y = elements(kind, x_at, job.width), elements(kind, y_at, job.width)
    weight = carray(float32_at(job.weight), (job.width,))
    bias = carray(float32_at(job.bias), (job.width,))
    shift, scale = np.float32(mean), np.float32(rate)
    left = np.float32((np.float64(shift) - mean) * rate)
    if job.weight and job.bias:
        for i in range(job.width):
            put(y, i, ((get(x, i) - shift) * scale + left) * weight[i] + bias[i])
    elif job.weight:
        for i in range(job.width):
            put(y, i, ((get(x, i) - shift) * scale + left) * weight[i])
    else:
        for i in range(job.width):
            put(y, i, (get(x, i) - shift) * scale + left)


@njit(**OPTIONS)
def _forward_rows(kind, job, eps, first, last):  # type: ignore[no-untyped-def]
    size = np.int64(2 if job.kind else 4)
    moments = carray(float64_at(job.moments), (2, job.rows))
    for row in range(first, last):
        to = size * row * job.width
        mean, variance = _row_moments(kind, job.x + to, job.width, job.centre)
        moments[0, row], moments[1, row] = mean, variance
        _row_map(kind, job, job.x + to, job.y + to, mean, 1.0 / math.sqrt(variance + eps))


@njit(**OPTIONS)
def _run_sums(kind, x_at, dy_at, n, shift, scale, left, gain_at, level_at, slope_at):  # type: ignore[no-untyped-def]
    """Adds to Σ dy (level) and Σ dy · x̂ (slope) of each element; Σ γ dy and Σ γ dy x̂ over the run, in float32."""
    x, dy = elements(kind, x_at, n), elements(kind, dy_at, n)
    gain = carray(float32_at(gain_at), (n,))
    level, slope = carray(float32_at(level_at), (n,)), carray(float32_at(slope_at), (n,))
    plain = along = np.float32(0.0)
    for i in range(n):
        each = get(dy, i)
        product = each * ((get(x, i) - shift) * scale + left)
        level[i] += each
        slope[i] += product
        plain += each * gain[i]
        along += product * gain[i]
    return np.float64(plain), np.float64(along)


@njit(**OPTIONS)
def _run_slopes(kind, x_at, dy_at, n, scale, gain_at, level_at, slope_at):  # type: ignore[no-untyped-def]
    """The same where nothing is centred; Σ γ dy is not needed."""
    x, dy = elements(kind, x_at, n), elements(kind, dy_at, n)
    gain = carray(float32_at(gain_at), (n,))
    level, slope = carray(float32_at(level_at), (n,)), carray(float32_at(slope_at), (n,))
    along = np.float32(0.0)
    for i in range(n):
        level[i] += get(dy, i)
        product = get(dy, i) * (get(x, i) * scale)
        slope[i] += product
        along += product * gain[i]
    return np.float64(along)


@njit(**OPTIONS)
def _row_gradient(kind, size, job, x_at, dy_at, dx_at, mean, rate, gain_at, level_at, slope_at):  # type: ignore[no-untyped-def]
    """One row: dx = (γ dy − mean(γ dy) − x̂ · mean(γ dy x̂)) / √(σ² + ε); adds to Σ dy and Σ dy · x̂."""
    shift, scale = np.float32(mean), np.float32(rate)
    left = np.float32((np.float64(shift) - mean) * rate)
    plain = along = 0.0
    for start in range(0, job.width, RUN):
        n, to, at = min(RUN, job.width - start), size * start, 4 * start
        if job.centre:
            one, two = _run_sums(
                kind, x_at + to, dy_at + to, n, shift, scale, left, gain_at + at, level_at + at, slope_at + at
            )
            plain += one
            along += two
        else:
            along += _run_slopes(kind, x_at + to, dy_at + to, n, scale, gain_at + at, level_at + at, slope_at + at)
    _row_back(kind, x_at, dy_at, dx_at, job.width, shift, scale, left, gain_at, plain / job.width, along / job.width)


@njit(**OPTIONS)
def _row_back(kind, x_at, dy_at, dx_at, n, shift, scale, left, gain_at, plain, along):  # type: ignore[no-untyped-def]
    x, dy, dx = elements(kind, x_at, n), elements(kind, dy_at, n), elements(kind, dx_at, n)
    gain = carray(float32_at(gain_at), (n,))
    a, b = np.float32(along), np.float32(plain)
    for i in range(n):
        hat = (get(x, i) - shift) * scale + left
        put(dx, i, (get(dy, i) * gain[i] - b - hat * a) * scale)


@njit(**OPTIONS)
def _backward_rows(kind, job, eps, first, last, shares):  # type: ignore[no-untyped-def]
    size = np.int64(2 if job.kind else 4)
    moments = carray(float64_at(job.moments), (2, job.rows))
    room = np.zeros((3, job.width), np.float32)  # γ, and the shares of Σ dy and Σ dy · x̂ until they are flushed
    if job.weight:
        room[0] = carray(float32_at(job.weight), (job.width,))
    else:
        room[0] = 1.0
    gain_at = np.int64(room.ctypes.data)
    level_at, slope_at = gain_at + 4 * job.width, gain_at + 8 * job.width
    for i in range(job.width):
        shares[0, i] = shares[1, i] = 0.0
    for row in range(first, last):
        to = size * row * job.width
        x_at, dy_at, dx_at = job.x + to, job.dy + to, job.y + to
        rate = 1.0 / math.sqrt(moments[1, row] + eps)
        _row_gradient(kind, size, job, x_at, dy_at, dx_at, moments[0, row], rate, gain_at, level_at, slope_at)
        if (row - first) % FLUSH == FLUSH - 1 or row == last - 1:
            for i in range(job.width):
                shares[0, i] += np.float64(room[1, i])
                shares[1, i] += np.float64(room[2, i])
            room[1:] = 0.0


@njit(**OPTIONS)
def _share(kind, forward, order_at):  # type: ignore[no-untyped-def]
    """Do blocks until none is left; several threads may be at it."""
    order = carray(int64_at(order_at), (ORDER,))
    job = RowJob(*to_fixed_tuple(order, FIELDS))  # type: ignore[call-arg]
    eps = as_float64(order[FIELDS])
    blocks = order[FIELDS + 3]
    while True:
        block = next_of(order_at + 8 * (FIELDS + 4))
        if block >= blocks:
            return
        first, last = block * job.block, min(job.rows, (block + 1) * job.block)
        if forward:
            _forward_rows(kind, job, eps, first, last)
        else:
            shares = carray(float64_at(job.shares), (2, blocks, job.width))
            _backward_rows(kind, job, eps, first, last, shares[:, block])


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
