"""Merging rows of consecutive steps, many series at once.

The statistic of a bucket of steps is the `+` of the statistics in it. Here that sum is taken over whole arrays, because
one Python-level merge for each site at each step would cost more than everything else that the store does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from holdfast.stats.sketch import Sketch
from holdfast.stats.summary import Summary
from holdfast.store.codec import Stack, Steps
from holdfast.store.rows import ROLLED, as_rolled
from holdfast.store.schema import Kind

LEVELS = (1, 10, 100, 1000)
"""Steps in a bucket; 1 is raw."""

_COLUMN = {name: index for index, name in enumerate(Summary.COLUMNS)}
_COUNTS = slice(_COLUMN["total"], _COLUMN["beyond"] + 1)
_BINS = slice(_COLUMN["exponent"] + 1, _COLUMN["exponent"] + len(Sketch.COLUMNS))
_READING = {name: index for index, name in enumerate(ROLLED)}


def bucket_end(step: int, level: int) -> int:
    """The last step of the bucket that a step lies in.

    Args:
        step: from 1.
        level: steps in a bucket.

    Returns:
        A multiple of `level`.

    Example:
        >>> bucket_end(1, 10), bucket_end(10, 10), bucket_end(11, 10)
        (10, 10, 20)
    """
    return -(-step // level) * level


def merge(kind: Kind, level: int, steps: Steps, stack: Stack) -> tuple[Steps, Stack]:
    """One row for each bucket of steps.

    Args:
        kind: what the series hold.
        level: steps in a bucket.
        steps: `(rows,)`, not falling.
        stack: `(series, rows, columns)`.

    Returns:
        `(buckets,)`, the last observed step of each, and `(series, buckets, columns)`.
    """
    ends = -(-steps // level)
    starts = np.flatnonzero(np.diff(ends, prepend=ends[0] - 1))
    last = steps[np.append(starts[1:], len(steps)) - 1]
    if kind == "reading":
        stack = as_rolled(stack)
    if len(starts) == len(steps):
        return last, stack
    with np.errstate(all="ignore"):  # figures that are not finite stay so; they are not news here
        if kind == "summary":
            return last, _summaries(stack, starts)
        if kind == "channels":
            series, rows, width = stack.shape
            merged = _channels(stack.reshape(series, rows, width // 4, 4), starts)
            return last, merged.reshape(series, len(starts), width)
        return last, _readings(stack, starts)


def _summaries(stack: Stack, starts: NDArray[np.intp]) -> Stack:
    rows = np.diff(np.append(starts, stack.shape[1]))
    out = np.empty((stack.shape[0], len(starts), stack.shape[2]))
    n, mean, m2, m3, m4 = (stack[:, :, _COLUMN[name]] for name in ("count", "mean", "m2", "m3", "m4"))
    total = np.add.reduceat(n, starts, 1)
    # Σ n μ / Σ n, taken around the bucket's first mean so that a large common mean costs no digits
    base = np.repeat(np.take(mean, starts, 1), rows, 1)
    average = np.take(mean, starts, 1) + _over(np.add.reduceat(n * (mean - base), starts, 1), total)
    d = np.where(n > 0, mean - np.repeat(average, rows, 1), 0.0)
    # M_k of the union: each part's central moments moved by d = μ_part − μ, expanded by the binomial theorem
    #   M2 = Σ  M2 +   n d²
    #   M3 = Σ  M3 + 3 d M2 +   n d³
    #   M4 = Σ  M4 + 4 d M3 + 6 d² M2 + n d⁴
    for name, figures in (
        ("m2", m2 + n * d**2),
        ("m3", m3 + 3 * d * m2 + n * d**3),
        ("m4", m4 + 4 * d * m3 + 6 * d**2 * m2 + n * d**4),
    ):
        out[:, :, _COLUMN[name]] = np.add.reduceat(figures, starts, 1)
    out[:, :, _COLUMN["count"]] = total
    out[:, :, _COLUMN["mean"]] = average
    out[:, :, _COLUMN["low"]] = np.minimum.reduceat(stack[:, :, _COLUMN["low"]], starts, 1)
    out[:, :, _COLUMN["high"]] = np.maximum.reduceat(stack[:, :, _COLUMN["high"]], starts, 1)
    out[:, :, _COUNTS] = np.add.reduceat(stack[:, :, _COUNTS], starts, 1)
    out[:, :, _COLUMN["exponent"]], out[:, :, _BINS] = _sketches(stack, starts, rows)
    return out


def _sketches(stack: Stack, starts: NDArray[np.intp], rows: NDArray[np.intp]) -> tuple[Stack, Stack]:
    """Bins of equal scale add up; where a bucket mixes scales, those of its last sketch with data are kept."""
    exponent, bins = stack[:, :, _COLUMN["exponent"]], stack[:, :, _BINS]
    filled = bins.any(2)
    at = np.where(filled, np.arange(stack.shape[1]), -1)
    newest = np.maximum.reduceat(at, starts, 1)
    newest = np.where(newest < starts, starts + rows - 1, newest)
    scale = np.take_along_axis(exponent, newest, 1)
    same = exponent == np.repeat(scale, rows, 1)
    return scale, np.add.reduceat(bins if same.all() else bins * same[:, :, None], starts, 1)


def _channels(stack: NDArray[np.float64], starts: NDArray[np.intp]) -> NDArray[np.float64]:
    rows = np.diff(np.append(starts, stack.shape[1]))
    n, mean, m2, zeros = (stack[..., k] for k in range(4))
    total = np.add.reduceat(n, starts, 1)
    base = np.take(mean, starts, 1)
    average = base + _over(np.add.reduceat(n * (mean - np.repeat(base, rows, 1)), starts, 1), total)
    d = np.where(n > 0, mean - np.repeat(average, rows, 1), 0.0)
    scatter = np.add.reduceat(m2 + n * d**2, starts, 1)
    return np.stack([total, average, scatter, np.add.reduceat(zeros, starts, 1)], -1)


def _readings(stack: Stack, starts: NDArray[np.intp]) -> Stack:
    """Means over the finite readings; the least n, the last lag, what all of them have."""
    ends = np.append(starts[1:], stack.shape[1]) - 1
    out = np.take(stack, ends, 1)
    weight = stack[:, :, _READING["count"]]
    total = np.add.reduceat(weight, starts, 1)
    for name in ("value", "low", "high", "floor"):
        figures = stack[:, :, _READING[name]]
        # a reading that is not finite has weight 0; its bounds may be finite, so that they are weighted alike
        sums = np.add.reduceat(np.where((weight > 0) & np.isfinite(figures), weight * figures, 0.0), starts, 1)
        out[:, :, _READING[name]] = np.where(total > 0, _over(sums, total), out[:, :, _READING[name]])
    out[:, :, _READING["n"]] = np.minimum.reduceat(stack[:, :, _READING["n"]], starts, 1)
    has = stack[:, :, _READING["has"]].astype(np.int64)
    out[:, :, _READING["has"]] = np.bitwise_and.reduceat(has, starts, 1)
    out[:, :, _READING["least"]] = np.fmin.reduceat(stack[:, :, _READING["least"]], starts, 1)
    out[:, :, _READING["greatest"]] = np.fmax.reduceat(stack[:, :, _READING["greatest"]], starts, 1)
    out[:, :, _READING["count"]] = total
    return out


def _over(sums: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(sums, total, out=np.zeros_like(sums), where=total > 0)
