"""The figures of a block in plain PyTorch: the oracle of the compiled kernel, and the path on any other device.

No operation waits for the device. Reads slice by slice, so that the float64 copies stay small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from holdfast.kernels.bins import BINS, EXPONENT_LIMIT, POSITIVE_EDGES
from holdfast.kernels.figures import BlockFigures

SLICE = 65_536
"""Elements that are widened to float64 at once: 0.5 MB, and a few temporaries of that size."""


def summarise_block_ref(
    block: Float[Tensor, "samples channels positions"], exponent: int, threshold: float
) -> BlockFigures:
    """The figures of a block, computed in float64 by plain PyTorch operations.

    Each slice is read twice (mean, then distances from it) and merged into the rest by Pébay's update.

    Args:
        block: `(samples, channels, positions)`, any strides, any device that has float64.
        exponent: the sketch's scale is 2**exponent.
        threshold: finite values with |x| above it are counted as beyond.

    Returns:
        The figures, on the block's device.

    Example:
        >>> figures = summarise_block_ref(torch.tensor([[[1.0], [3.0]], [[0.0], [4.0]]]), 0, 2.0)
        >>> figures.totals.tolist()
        [4.0, 2.0, 10.0, 0.0, 34.0, 0.0, 4.0, 1.0, 0.0, 0.0, 0.0, 2.0]
        >>> figures.channels[0].tolist()
        [2.0, 0.5, 0.5, 1.0]
    """
    samples, channels, positions = block.shape
    with torch.no_grad():
        block = block.detach()
        totals = block.new_zeros(12, dtype=torch.float64)
        totals[5], totals[6] = math.inf, -math.inf
        per_channel = block.new_zeros(channels, 4, dtype=torch.float64)
        sums = block.new_zeros(samples, channels, dtype=torch.float64)
        counts = block.new_zeros(samples, channels, dtype=torch.float64)
        bins = block.new_zeros(BINS, dtype=torch.int64)
        for rows, columns in _slices(samples, channels, positions):
            part = block[rows, :, columns].to(torch.float64)
            finite = part.isfinite()
            totals = _merge_totals(totals, _totals(part, finite, threshold))
            per_channel = _merge_channels(per_channel, _channels(part, finite))
            bins += _bins(part, finite, exponent)
            sums[rows] += part.where(finite, 0.0).sum(2)
            counts[rows] += finite.sum(2)
        features = (sums / counts).to(torch.float32)  # 0 / 0 is the NaN that is promised
    return BlockFigures(totals, per_channel, features, bins)


def _slices(samples: int, channels: int, positions: int) -> Iterator[tuple[slice, slice]]:
    """Ranges of samples and positions that hold about `SLICE` elements, every channel in each."""
    if samples * channels * positions == 0:
        return
    columns = max(1, min(positions, SLICE // channels))
    rows = max(1, SLICE // (channels * columns)) if columns == positions else 1
    for row in range(0, samples, rows):
        for column in range(0, positions, columns):
            yield slice(row, row + rows), slice(column, column + columns)


def _centre(
    part: Float64[Tensor, "s c p"], finite: Tensor, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Float64[Tensor, "s c p"]]:
    """Count, mean and distances from the mean over some dimensions, those kept with length 1.

    The sum is taken from the first value on, so that constant data have a variance of exactly zero.
    """
    start = part
    for dim in dims:
        start = start.narrow(dim, 0, 1)
    start = start.where(start.isfinite(), 0.0)
    count = finite.sum(dims, keepdim=True).to(torch.float64)
    mean = start + (part - start).where(finite, 0.0).sum(dims, keepdim=True) / count.clamp(min=1.0)
    mean = mean.where(count > 0, 0.0)
    return count, mean, (part - mean).where(finite, 0.0)


def _totals(part: Float64[Tensor, "s c p"], finite: Tensor, threshold: float) -> Float64[Tensor, 12]:
    count, mean, distance = _centre(part, finite, (0, 1, 2))
    square = distance * distance
    figures = (
        count.squeeze(),
        mean.squeeze(),
        square.sum(),
        (square * distance).sum(),
        (square * square).sum(),
        part.where(finite, math.inf).amin(),
        part.where(finite, -math.inf).amax(),
        (part == 0).sum(),
        part.isnan().sum(),
        part.isposinf().sum(),
        part.isneginf().sum(),
        (finite & (part.abs() > threshold)).sum(),
    )
    return torch.stack([each.to(torch.float64) for each in figures])


def _channels(part: Float64[Tensor, "s c p"], finite: Tensor) -> Float64[Tensor, "c 4"]:
    count, mean, distance = _centre(part, finite, (0, 2))
    return torch.stack(
        [count.flatten(), mean.flatten(), (distance * distance).sum((0, 2)), (part == 0).sum((0, 2)).to(count.dtype)], 1
    )


def _bins(part: Float64[Tensor, "s c p"], finite: Tensor, exponent: int) -> Int64[Tensor, 64]:
    """Bin k on either side of zero holds edge[k] ≤ |x| / scale < edge[k + 1].

    Zeros of either sign count as positive.
    """
    half = BINS // 2
    scale = 2.0 ** -max(-EXPONENT_LIMIT, min(EXPONENT_LIMIT, exponent))
    edges = torch.tensor(POSITIVE_EDGES[:-1], device=part.device)
    scaled = (part * scale).flatten()  # searching is slow, and warns, over anything that is not contiguous
    index = torch.bucketize(scaled.abs(), edges, right=True)
    index = torch.where(scaled < 0, half - 1 - index, half + index)
    index = torch.where(finite.flatten(), index, BINS)
    counts = torch.zeros(BINS + 1, dtype=torch.int64, device=part.device)
    return counts.scatter_add_(0, index, torch.ones_like(index))[:BINS]


def _merge_totals(a: Float64[Tensor, 12], b: Float64[Tensor, 12]) -> Float64[Tensor, 12]:
    """Pébay 2008, eqs. 2.1 and 3.1, with α = n_b / n and β = n_a / n."""
    count = a[0] + b[0]
    alpha = b[0] / count.clamp(min=1.0)
    beta = a[0] / count.clamp(min=1.0)
    delta = b[1] - a[1]
    square = delta * delta
    m2 = a[2] + b[2] + a[0] * alpha * square
    m3 = a[3] + b[3] + a[0] * alpha * (beta - alpha) * square * delta + 3.0 * delta * (beta * b[2] - alpha * a[2])
    m4 = (
        a[4]
        + b[4]
        + a[0] * alpha * (beta * beta - alpha * beta + alpha * alpha) * square * square
        + 6.0 * square * (beta * beta * b[2] + alpha * alpha * a[2])
        + 4.0 * delta * (beta * b[3] - alpha * a[3])
    )
    extremes = [torch.minimum(a[5], b[5]), torch.maximum(a[6], b[6])]
    return torch.stack([count, a[1] + alpha * delta, m2, m3, m4, *extremes, *(a[7:] + b[7:])])


def _merge_channels(a: Float64[Tensor, "c 4"], b: Float64[Tensor, "c 4"]) -> Float64[Tensor, "c 4"]:
    count = a[:, 0] + b[:, 0]
    alpha = b[:, 0] / count.clamp(min=1.0)
    delta = b[:, 1] - a[:, 1]
    m2 = a[:, 2] + b[:, 2] + a[:, 0] * alpha * delta * delta
    return torch.stack([count, a[:, 1] + alpha * delta, m2, a[:, 3] + b[:, 3]], 1)
