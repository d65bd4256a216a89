"""`Sketch`: a histogram over asinh bins that merges exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from numpy.typing import NDArray

from holdfast.core.errors import StatisticError
from holdfast.kernels.bins import BINS, EXPONENT_LIMIT, POSITIVE_EDGES

_HALF = BINS // 2
_UNIT_EDGES = np.concatenate([-POSITIVE_EDGES[::-1], [0.0], POSITIVE_EDGES])


def edges(exponent: int) -> Float64[ndarray, 65]:
    """The edges of the bins for a scale of 2**exponent.

    Edge 32 ± k lies at ± 2**exponent · sinh(0.2 k): evenly spaced near zero, in constant ratio far from it. The
    two outermost bins also hold everything beyond the outermost edges, 300 scales from zero.

    Args:
        exponent: of the scale.

    Returns:
        65 rising finite values in the tensor's unit.

    Example:
        >>> edges(0)[31:34].round(4).tolist()
        [-0.2031, 0.0, 0.2031]
    """
    return _UNIT_EDGES * 2.0**exponent


@dataclass(frozen=True, slots=True)
class Sketch:
    """Counts of the finite values in 64 bins that are even in asinh(x / 2**exponent).

    The scale is fixed at a site's first observation: sketches of one site merge exactly, sketches of different
    scales refuse.

    Args:
        exponent: the scale is 2**exponent.
        bins: 64 counts, from the most negative; an exact zero is in bin 32.

    Example:
        >>> sketch = Sketch(0, (0,) * 32 + (2, 2) + (0,) * 30)
        >>> sketch.count, round(sketch.quantile(0.5), 4)
        (4, 0.2031)
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("exponent", *(f"bin{k:02d}" for k in range(BINS)))

    exponent: int
    bins: tuple[int, ...]

    @classmethod
    def empty(cls, exponent: int = 0) -> Sketch:
        """Of no data; it merges with a sketch of any scale."""
        return cls(exponent, (0,) * BINS)

    @staticmethod
    def exponent_for(rms: float) -> int:
        """The exponent for data of a given root mean square.

        The scale is between rms / 8 and rms / 4: about 20 to 30 bins cover ±2 rms, the finest are at most
        rms / 20 wide, and the last closed edge is at least 30 rms from zero.

        Args:
            rms: in the tensor's unit; 0, NaN or inf give 0.

        Returns:
            The exponent.

        Example:
            >>> Sketch.exponent_for(1.0)
            -2
        """
        if not 0.0 < rms < math.inf:
            return 0
        # frexp gives rms = m · 2**e with 1/2 ≤ m < 1.
        exponent = math.frexp(rms)[1] - 3
        return max(-EXPONENT_LIMIT, min(EXPONENT_LIMIT, exponent))

    @staticmethod
    def edges(exponent: int) -> Float64[ndarray, 65]:
        """The edges of the bins: see the function `edges` of this file."""
        return edges(exponent)

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.bins)

    def quantile(self, q: float) -> float:
        """The value below which a fraction q lies, interpolated inside its bin.

        Args:
            q: between 0 and 1.

        Returns:
            In the tensor's unit, right to the width of a bin; NaN without data. Never beyond the outermost edges.
        """
        if not self.count:
            return math.nan
        reached = np.concatenate([[0], np.cumsum(self.bins)]) / self.count
        # Empty bins make flat pieces, over which the inverse is not defined: the bin that holds the data counts.
        index = int(np.clip(np.searchsorted(reached, q, side="left") - 1, 0, BINS - 1))
        while not self.bins[index]:
            index += 1
        low, high = edges(self.exponent)[index : index + 2].tolist()
        share = (q - float(reached[index])) * self.count / self.bins[index]
        return low + (high - low) * min(max(share, 0.0), 1.0)

    def density(self) -> Float64[ndarray, 64]:
        """Fraction of the values in each bin over the bin's width: a density that integrates to 1.

        Returns:
            64 values in 1 / the tensor's unit; NaN without data. The outermost bins are drawn as if closed.
        """
        total = self.count or math.nan
        return np.array(self.bins, np.float64) / total / np.diff(edges(self.exponent))

    def __add__(self, other: Sketch, /) -> Sketch:
        if self.exponent != other.exponent:
            return self._across_scales(other)
        return Sketch(self.exponent, tuple(a + b for a, b in zip(self.bins, other.bins, strict=True)))

    def scaled(self, factor: float) -> Sketch:
        """Of the same values times a factor: exact for a power of two, else to half a bin.

        Args:
            factor: above 0.

        Returns:
            A sketch whose scale is the nearest power of two.

        Example:
            >>> Sketch(3, (0,) * 40 + (5,) + (0,) * 23).scaled(0.5).exponent
            2
        """
        shift = round(math.log2(factor))
        # The grid's own steps that remain: bins are even in asinh.
        left = factor / 2.0**shift
        if left == 1.0 or not self.count:
            return Sketch(self.exponent + shift, self.bins)
        middles = np.sinh(0.5 * (np.arcsinh(_UNIT_EDGES[1:]) + np.arcsinh(_UNIT_EDGES[:-1])))
        places = np.clip(np.searchsorted(_UNIT_EDGES, middles * left, side="right") - 1, 0, BINS - 1)
        bins = np.zeros(BINS, np.int64)
        np.add.at(bins, places, self.bins)
        return Sketch(self.exponent + shift, tuple(bins.tolist()))

    def _across_scales(self, other: Sketch) -> Sketch:
        if self.count and other.count:
            raise StatisticError(
                f"a sketch of scale 2**{self.exponent}",
                f"one of scale 2**{other.exponent}",
                f"observe both with: observe(block, exponent={self.exponent}, threshold=None)",
            )
        if not self.count and not other.count:
            return self if self.exponent > other.exponent else other
        return self if self.count else other

    def pack(self) -> NDArray[np.float64]:
        """As one vector, in the order of `COLUMNS`."""
        return np.array((self.exponent, *self.bins), np.float64)

    @classmethod
    def unpack(cls, vector: NDArray[np.float64], /) -> Sketch:
        """Read `pack`'s vector back."""
        exponent, *bins = (int(value) for value in vector.tolist())
        return cls(exponent, tuple(bins))
