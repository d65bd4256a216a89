"""`Lens`: the compiled kernel made ready for the tensors of one site, which are read again and again in one way."""

from __future__ import annotations

import math
from ctypes import addressof, c_char
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from holdfast.kernels import compiler, threads
from holdfast.kernels.bins import BINS, EXPONENT_LIMIT

KINDS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""The types that can be read, as `block_cpu` numbers them."""

WIDTH = 14 + BINS
"""Figures of a summary as it is packed: 5 moments, 2 extremes, 6 counts, the exponent, the bins."""

_JOB = 22
"""Words of a job."""

_LOOK, _SEEN = Struct("=qdqqq"), Struct("=qq")
"""Of them the last: the tensor, the phase, and where the figures go; how many samples and positions were seen."""

PARTS = 8
"""Of a tensor that several threads share: always as many, so that figures do not depend on the number of threads."""

WORTH_SHARING = 1 << 19
"""Elements, which one thread reads in half a millisecond."""


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


class Looked:
    """What one look gives: the kernel's figures as they came, put in order when somebody asks.

    In the middle of a training step every line of code that is not run is a line of memory that need not be fetched.

    Args:
        found: the job, and behind it what came of it.
        parts: in which the tensor was read.
        wide: how many channels.
        values: mean over positions of each sample and channel, of as many samples as there may be; `None` when they
            were not asked for.
    """

    __slots__ = ("_found", "_parts", "_values", "_vector", "_wide")

    def __init__(self, found: NDArray[np.float64], parts: int, wide: int, values: NDArray[np.float32] | None) -> None:
        self._found, self._parts, self._wide, self._values = found, parts, wide, values
        self._vector: NDArray[np.float64] | None = None

    @property
    def vector(self) -> NDArray[np.float64]:
        """The summary as it is packed, `(WIDTH,)`."""
        if self._vector is None:
            vectors = self._found[_JOB : _JOB + self._parts * WIDTH]
            self._vector = vectors if self._parts == 1 else _joined(vectors.reshape(self._parts, WIDTH))
        return self._vector

    @property
    def channels(self) -> NDArray[np.float64]:
        """Count, mean, M₂ and zeros of each channel."""
        tables = self._found[_JOB + self._parts * WIDTH :].reshape(self._parts, self._wide, 4)
        return tables[0] if self._parts == 1 else _joined_channels(tables)

    @property
    def features(self) -> NDArray[np.float32] | None:
        """Mean over positions of each sample and channel; `None` when not asked for."""
        return None if self._values is None else self._values[: self._seen[0]]

    @property
    def positions(self) -> int:
        """How many values of a sample and channel were read."""
        return self._seen[1]

    @property
    def _seen(self) -> tuple[int, int]:
        buffer: Any = self._found
        samples, positions = _SEEN.unpack_from(buffer, 8 * (_JOB - 2))
        return samples, positions


class Lens:
    """Reads tensors of one type through one window.

    Args:
        kind: of the type, from `KINDS`.
        window: which elements.
        exponent: the sketch's scale is 2**exponent.
        threshold: finite values with |x| above it are counted as beyond.
        sketched: about how many of the elements the sketch counts, in rows spread evenly over samples, channels and
            positions; 0 for all.
    """

    __slots__ = ("_channels", "_job", "_parts", "_samples")

    def __init__(self, kind: int, window: Window, exponent: int, threshold: float, sketched: int = 0) -> None:
        scale = 2.0 ** -max(-EXPONENT_LIMIT, min(EXPONENT_LIMIT, exponent))
        bits = np.array([scale, threshold]).view(np.int64)
        self._samples = math.ceil(window.samples / window.sample_step)
        self._channels = window.channels
        elements = self._samples * window.channels * math.ceil(window.positions / window.position_step)
        self._parts = PARTS if elements >= WORTH_SHARING and self._samples > PARTS else 1
        # As `block_cpu` numbers a job's words; the last seven are of one look.
        job = np.array([0, self._parts, kind, *window, *bits, exponent, sketched, *[0] * 7], np.int64)
        self._job = job.view(np.float64)

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
        parts, wide = self._parts, self._channels
        # One piece of memory for the job and what comes of it: an address costs as much as reading a small tensor.
        found: Any = np.empty(_JOB + parts * (WIDTH + 4 * wide))
        found[:_JOB] = self._job
        here = addressof(c_char.from_buffer(found))
        vectors = here + 8 * _JOB
        values: Any = np.empty((self._samples, wide), np.float32) if features else None
        rows = 0 if values is None else addressof(c_char.from_buffer(values))
        _LOOK.pack_into(found, 8 * (_JOB - 7), address, phase, vectors, vectors + 8 * WIDTH * parts, rows)
        if parts == 1:
            threads.call(kernel, here)
        else:
            threads.run(kernel, here, torch.get_num_threads())
        return Looked(found, parts, wide, values)


def _joined(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """One summary of several, packed: central sums about the common mean (Pébay 2008), the rest by adding up."""
    count, mean, m2, m3, m4 = parts[:, :5].T
    joined = parts.sum(0)
    if joined[0]:
        mean = np.where(count > 0, mean, 0.0)
        joined[1] = count @ mean / joined[0]
        d = mean - joined[1]
        joined[2] = np.sum(m2 + count * d**2)
        joined[3] = np.sum(m3 + 3 * d * m2 + count * d**3)
        joined[4] = np.sum(m4 + 4 * d * m3 + 6 * d**2 * m2 + count * d**4)
    else:
        joined[1] = parts[0, 1]
    joined[5], joined[6] = parts[:, 5].min(), parts[:, 6].max()
    joined[13] = parts[0, 13]
    return joined


def _joined_channels(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same of every channel's count, mean, M₂ and zeros."""
    count, mean, m2, zeros = np.moveaxis(parts, 2, 0)
    total = count.sum(0)
    mean = np.where(count > 0, mean, 0.0)
    centre = (count * mean).sum(0) / np.maximum(total, 1)
    return np.stack([total, centre, (m2 + count * (mean - centre) ** 2).sum(0), zeros.sum(0)], axis=1)
