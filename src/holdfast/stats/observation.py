"""`observe`: from a tensor to its statistics."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from holdfast.kernels.dispatch import summarise_block
from holdfast.kernels.figures import BlockFigures
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.counts import Counts
from holdfast.stats.extremes import Extremes
from holdfast.stats.features import Features
from holdfast.stats.moments import Moments
from holdfast.stats.sketch import Sketch
from holdfast.stats.summary import Summary


class Observation(NamedTuple):
    """What one look at a tensor gives.

    Args:
        summary: of the whole tensor.
        channels: of every channel.
        features: of every sample and channel.
        rectified: of every channel after the rectifying function that takes the tensor, where one does.
    """

    summary: Summary
    channels: ChannelMoments
    features: Features
    rectified: ChannelMoments | None = None


def observe(
    block: Float[Tensor, "samples channels positions"], *, exponent: int | None = None, threshold: float | None = None
) -> Observation:
    """The statistics of a block.

    Args:
        block: `(samples, channels, positions)`: any strides, float32, float64, bfloat16 or float16, possibly empty.
        exponent: the sketch's scale is 2**exponent; `None` chooses it from this block's rms.
        threshold: finite values with |x| above it are counted as beyond; `None` counts none.

    Returns:
        The statistics; nothing in them refers to the block's memory.

    Example:
        >>> import torch
        >>> seen = observe(torch.tensor([[[1.0], [3.0]], [[0.0], [4.0]]]))
        >>> seen.summary.moments.mean, seen.channels.mean.tolist(), seen.features.values.tolist()
        (2.0, [0.5, 3.5], [[1.0, 3.0], [0.0, 4.0]])
    """
    beyond = math.inf if threshold is None else threshold
    figures = summarise_block(block, exponent or 0, beyond)
    if exponent is None:
        exponent = Sketch.exponent_for(_moments(figures.totals.tolist()).rms)
        if exponent:
            figures = summarise_block(block, exponent, beyond)
    return _observation(figures, exponent, block)


def _observation(figures: BlockFigures, exponent: int, block: Tensor) -> Observation:
    totals = figures.totals.tolist()
    low, high = totals[5:7]
    moments = _moments(totals)
    counts = Counts(block.numel(), *(int(value) for value in totals[7:12]))
    summary = Summary(moments, Extremes(low, high), counts, Sketch(exponent, tuple(figures.bins.tolist())))
    rows = np.ascontiguousarray(figures.channels.cpu().numpy().T)
    # In NumPy: torch hands √ to a library that wakes its threads for it, at 1 ms a call on busy cores.
    with np.errstate(invalid="ignore", divide="ignore"):
        sd = np.sqrt(rows[2] / rows[0])
    place = figures.features.device
    features = Features(
        figures.features,
        torch.from_numpy(sd).to(place),
        torch.from_numpy(rows[1].copy()).to(place),
        moments.rms,
        block.shape[2],
    )
    return Observation(summary, ChannelMoments(*rows), features)


def _moments(totals: list[float]) -> Moments:
    count, *rest = totals[:5]
    return Moments(int(count), *rest)
