"""`ChannelMoments`: count, mean, second moment and zeros of every channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray
from numpy.typing import NDArray

from holdfast.core.errors import StatisticError


@dataclass(frozen=True, slots=True, eq=False)
class ChannelMoments:
    """Count, mean, M₂ = Σ (x − mean)² and exact zeros of every channel, over samples and positions.

    Args:
        count: finite values, `(channels,)`.
        mean: in the tensor's unit; 0 where there are none.
        m2: Σ (x − mean)².
        zeros: exactly zero.

    Example:
        >>> one = ChannelMoments(*(np.array([each]) for each in (2.0, 1.0, 2.0, 1.0)))  # of [0, 2]
        >>> (one + one).sd.tolist(), one.dead.tolist()
        ([1.0], [False])
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("count", "mean", "m2", "zeros")

    count: Float64[ndarray, channels]
    mean: Float64[ndarray, channels]
    m2: Float64[ndarray, channels]
    zeros: Float64[ndarray, channels]

    @classmethod
    def empty(cls, channels: int = 0) -> ChannelMoments:
        """Of no data; without channels it merges with any other."""
        return cls.unpack(np.zeros(4 * channels))

    @property
    def channels(self) -> int:
        """How many channels."""
        return len(self.count)

    @property
    def variance(self) -> Float64[ndarray, channels]:
        """M₂ / n (divided by n, not by n − 1); NaN without data."""
        return self.m2 / np.where(self.count > 0, self.count, np.nan)

    @property
    def sd(self) -> Float64[ndarray, channels]:
        """Square root of the variance."""
        return np.sqrt(self.variance)

    @property
    def dead(self) -> Bool[ndarray, channels]:
        """Where every value is exactly zero (and there are values)."""
        return (self.zeros == self.count) & (self.count > 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChannelMoments) and np.array_equal(self.pack(), other.pack())

    def __hash__(self) -> int:
        return hash(self.pack().tobytes())

    def __add__(self, other: ChannelMoments, /) -> ChannelMoments:
        if not self.channels or not other.channels:
            return self if self.channels else other
        if self.channels != other.channels:
            raise StatisticError(
                f"statistics of {self.channels} channels",
                f"statistics of {other.channels}",
                "merge statistics of one site only",
            )
        count = self.count + other.count
        share = other.count / np.maximum(count, 1.0)
        delta = other.mean - self.mean
        # Where one side is empty its mean of 0 says nothing: alpha is 0 or 1 there and the other side is kept.
        return ChannelMoments(
            count,
            np.where(self.count > 0, self.mean + share * delta, other.mean),
            self.m2 + other.m2 + self.count * share * delta * delta,
            self.zeros + other.zeros,
        )

    def pack(self) -> NDArray[np.float64]:
        """As one vector, one row of `COLUMNS` a channel."""
        return np.stack([self.count, self.mean, self.m2, self.zeros], 1).ravel()

    @classmethod
    def unpack(cls, vector: NDArray[np.float64], /) -> ChannelMoments:
        """Read `pack`'s vector back."""
        rows = np.asarray(vector, np.float64).reshape(-1, 4)
        return cls(*(rows[:, k].copy() for k in range(4)))
