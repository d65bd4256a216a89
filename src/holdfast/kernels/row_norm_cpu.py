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
def _row_gradient(kind, job, x_at, dy_at, dx_at, mean, rate, gain, level, slope):  # type: ignore[no-untyped-def]
    """Dx = (γ dy − mean(γ dy) − x̂ · mean(γ dy x̂)) / √(σ² + ε); adds to Σ dy (level) and Σ dy · x̂ (slope)."""
    x, dy, dx = elements(kind, x_at, job.width), elements(kind, dy_at, job.width), elements(kind, dx_at, job.width)
    shift, scale = np.float32(mean), np.float32(rate)
    left = np.float32((np.float64(shift) - mean) * rate)
    plain = along = 0.0
    for i in range(job.width):
        each = get(dy, i)
        hat = (get(x, i) - shift) * scale + left
        level[i] += each
        slope[i] += each * hat
        plain += np.float64(each * gain[i])
        along += np.float64(each * gain[i] * hat)
    a = np.float32(along / job.width)
    b = np.float32(plain / job.width if job.centre else 0.0)
    for i in range(job.width):
        hat = (get(x, i) - shift) * scale + left
        put(dx, i, (get(dy, i) * gain[i] - b - hat * a) * scale)


@njit(**OPTIONS)
def _backward_rows(kind, job, eps, first, last, shares):  # type: ignore[no-untyped-def]
    size = np.int64(2 if job.kind else 4)
    moments = carray(float64_at(job.moments), (2, job.rows))
    gain, level, slope = (
        np.ones(job.width, np.float32),
        np.zeros(job.width, np.float32),
        np.zeros(job.width, np.float32),
    )
    for i in range(job.width):
        shares[0, i] = shares[1, i] = 0.0
    if job.weight:
        gain[:] = carray(float32_at(job.weight), (job.width,))
    for row in range(first, last):
        to = size * row * job.width
        rate = 1.0 / math.sqrt(moments[1, row] + eps)
        _row_gradient(kind, job, job.x + to, job.dy + to, job.y + to, moments[0, row], rate, gain, level, slope)
        if (row - first) % FLUSH == FLUSH - 1 or row == last - 1:
            for i in range(job.width):
                shares[0, i] += np.float64(level[i])
                shares[1, i] += np.float64(slope[i])
                level[i] = slope[i] = np.float32(0.0)


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


def order(job: RowJob, eps: float) -> list[int]:
    """What a call reads: the job and ε; two words that are not used, the number of blocks, and how many were taken.

    Args:
        job: sizes and addresses.
        eps: ε.

    Returns:
        Its words, the last four 0.
    """
    return [*job, int(np.float64(eps).view(np.int64)), 0, 0, 0, 0]
