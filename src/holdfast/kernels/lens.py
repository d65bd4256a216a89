"""`Lens`: the compiled kernel made ready for the tensors of one site, which are read again and again in one way."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast.kernels import compiler
from holdfast.kernels.bins import BINS, EXPONENT_LIMIT

KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""The types that can be read, as `block_cpu` numbers them."""

WIDTH = 14 + BINS
"""Figures of a summary as it is packed: 5 moments, 2 extremes, 6 counts, the exponent, the bins."""

_NONE: NDArray[np.float32] = np.empty((0, 0), np.float32)


class Window(NamedTuple):
    """Which elements of a tensor are read as a block `(samples, channels, positions)`; strides are in elements.

    Args:
        samples: how many the tensor has.
        channels: how many are read.
        positions: how many the tensor has.
        sample_stride: from a sample to the next.
        channel_stride: from a channel that is read to the next one that is.
        position_stride: from a position to the next.
        sample_step: every how many samples one is read.
        position_step: every how many positions one is read.
    """

    samples: int
    channels: int
    positions: int
    sample_stride: int
    channel_stride: int
    position_stride: int
    sample_step: int = 1
    position_step: int = 1

    def start(self, phase: float) -> tuple[int, int]:
        """The first sample and the first position that are read.

        Args:
            phase: in [0, 1).

        Returns:
            Their places; over all phases each is first equally often.
        """
        return int(phase * self.sample_step), int(phase * min(self.position_step, self.positions))


class Looked(NamedTuple):
    """What one look gives, as plain arrays.

    Args:
        vector: the summary as it is packed, `(WIDTH,)`.
        channels: count, mean, M₂ and zeros of each channel.
        features: mean over positions of each sample and channel; `None` when not asked for.
        positions: how many values of a sample and channel were read.
    """

    vector: NDArray[np.float64]
    channels: NDArray[np.float64]
    features: NDArray[np.float32] | None
    positions: int


class Lens:
    """Reads tensors of one type through one window.

    Args:
        kind: of the type, from `KINDS`.
        window: which elements.
        exponent: the sketch's scale is 2**exponent.
        threshold: finite values with |x| above it are counted as beyond.
    """

    __slots__ = ("_channels", "_order", "_samples")

    def __init__(self, kind: int, window: Window, exponent: int, threshold: float) -> None:
        scale = 2.0 ** -max(-EXPONENT_LIMIT, min(EXPONENT_LIMIT, exponent))
        bits = np.array([scale, threshold]).view(np.int64)
        self._order = np.array([kind, *window, *bits, exponent], np.int64)
        self._samples = math.ceil(window.samples / window.sample_step)
        self._channels = window.channels

    def look(self, address: int, phase: float, *, features: bool) -> Looked | None:
        """Read a tensor.

        Args:
            address: of its first element, in memory that native code may read.
            phase: in [0, 1), see `Window.start`.
            features: whether the values of each sample are wanted.

        Returns:
            The figures; `None` while the kernel is not compiled.
        """
        kernel = compiler.kernel()
        if kernel is None:
            return None
        vector, channels = np.empty(WIDTH), np.empty((self._channels, 4))
        values = np.empty((self._samples, self._channels), np.float32) if features else _NONE
        samples, positions = kernel(self._order, address, phase, vector, channels, values)
        return Looked(vector, channels, values[:samples] if features else None, positions)
