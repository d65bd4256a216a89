"""`observe`: from a tensor to its statistics."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from holdfast.kernels.dispatch import summarise_block
from holdfast.kernels.figures import BlockFigures
from holdfast.kernels.lens import Looked
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.features import Features
from holdfast.stats.packed import Packed
from holdfast.stats.sketch import Sketch
from holdfast.stats.summary import Summary


class Plain(NamedTuple):
    """What `Looked` tells, from elsewhere than the kernel.

    Args:
        vector: the summary, packed.
        channels: count, mean, M₂ and zeros of each channel.
        features: mean over positions of each sample and channel; `None` where they were not asked for.
        positions: how many values of a sample a feature's figures come from.
    """

    vector: NDArray[np.float64]
    channels: NDArray[np.float64]
    features: Tensor | NDArray[np.float32] | None
    positions: int


class Observation:
    """What one look at a tensor gives; worked out from the kernel's figures when somebody asks.

    At a step of which only the statistics are kept, nobody does in the training thread: `packed_summary` and
    `packed_channels` are the kernel's arrays as they are.

    Args:
        looked: the kernel's figures.
    """

    def __init__(self, looked: Looked | Plain) -> None:
        self._looked = looked
        self.rectified: ChannelMoments | None = None
        """Of every channel after the rectifying function that takes the tensor, where one does."""

    @cached_property
    def summary(self) -> Summary:
        """Of the whole tensor."""
        return Summary.unpack(self._looked.vector)

    @cached_property
    def channels(self) -> ChannelMoments:
        """Of every channel."""
        return ChannelMoments.unpack(self._looked.channels)

    @cached_property
    def features(self) -> Features:
        """Of every sample and channel.

        Raises:
            ValueError: they were not asked for.
        """
        found = self._looked.features
        if found is None:
            raise ValueError("this observation has no features")
        values = torch.from_numpy(found) if isinstance(found, np.ndarray) else found
        rows = self._looked.channels
        # In NumPy: torch hands √ to a library that wakes its threads for it, at 1 ms a call on busy cores.
        with np.errstate(invalid="ignore", divide="ignore"):
            sd = np.sqrt(rows[:, 2] / rows[:, 0])
        place = values.device
        mean = torch.from_numpy(rows[:, 1].copy()).to(place)
        return Features(values, torch.from_numpy(sd).to(place), mean, self.rms, self._looked.positions)

    @property
    def exponent(self) -> int:
        """Of the sketch's scale."""
        return int(self._looked.vector[13])

    @property
    def rms(self) -> float:
        """Root mean square of the finite values; NaN where there are none."""
        count, mean, m2 = self._looked.vector[:3].tolist()
        return math.hypot(mean, math.sqrt(m2 / count)) if count else math.nan

    @property
    def packed_summary(self) -> Packed:
        """The summary as the vector that it is."""
        return Packed(Summary, self._looked.vector)

    @property
    def packed_channels(self) -> Packed:
        """The channels' statistic as the vector that it is."""
        return Packed(ChannelMoments, self._looked.channels.ravel())

    def __add__(self, other: Observation, /) -> Observation:
        """Of several passes of a step: summaries and channels add up, features are those of the last pass."""
        summary, channels = self.summary + other.summary, self.channels + other.channels
        last = other._looked
        found = Observation(Plain(summary.pack(), channels.pack().reshape(-1, 4), last.features, last.positions))
        # The features' own scale is that of the pass that they are of.
        if last.features is not None:
            found.features = other.features
        if self.rectified is not None and other.rectified is not None:
            found.rectified = self.rectified + other.rectified
        return found


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
        exponent = Sketch.exponent_for(_rms(figures))
        if exponent:
            figures = summarise_block(block, exponent, beyond)
    totals = figures.totals.cpu().numpy()
    vector = np.concatenate([totals[:7], [block.numel()], totals[7:], [exponent], figures.bins.cpu().numpy()])
    return Observation(Plain(vector, figures.channels.cpu().numpy(), figures.features, block.shape[2]))


def _rms(figures: BlockFigures) -> float:
    count, mean, m2 = figures.totals[:3].tolist()
    return math.hypot(mean, math.sqrt(m2 / count)) if count else math.nan
