"""`Moments`: how many, mean, and central sums of powers 2 to 4."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and the central sums M_k = Σ (x − mean)^k of the finite values, k = 2, 3, 4.

    Args:
        count: how many values.
        mean: in the tensor's unit; 0 when there are none.
        m2: Σ (x − mean)².
        m3: Σ (x − mean)³.
        m4: Σ (x − mean)⁴.

    Example:
        >>> a, b = Moments(2, 1.0, 2.0, 0.0, 2.0), Moments(2, 3.0, 2.0, 0.0, 2.0)  # of [0, 2] and of [2, 4]
        >>> a + b  # of [0, 2, 2, 4]
        Moments(count=4, mean=2.0, m2=8.0, m3=0.0, m4=32.0)
        >>> (a + b).variance
        2.0

    References:
        Pébay 2008, "Formulas for robust, one-pass parallel computation of covariances and arbitrary-order
        statistical moments", eqs. 2.1 and 3.1.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("count", "mean", "m2", "m3", "m4")

    count: int
    mean: float
    m2: float
    m3: float
    m4: float

    @classmethod
    def empty(cls) -> Moments:
        """Of no data."""
        return cls(0, 0.0, 0.0, 0.0, 0.0)

    @property
    def variance(self) -> float:
        """Mean squared distance from the mean (divided by n, not by n − 1); NaN without data."""
        return self.m2 / self.count if self.count else math.nan

    @property
    def sd(self) -> float:
        """Square root of the variance."""
        return math.sqrt(self.variance)

    @property
    def rms(self) -> float:
        """√(mean of x²) = √(mean² + variance); NaN without data."""
        return math.hypot(self.mean, self.sd)

    @property
    def skewness(self) -> float:
        """√n · M₃ / M₂^1.5: 0 for symmetric data; NaN for constant data."""
        sd = self.sd
        # Divided one by one: sd³ overflows where the quotient does not.
        return self.m3 / self.count / sd / sd / sd if sd > 0 else math.nan

    @property
    def kurtosis(self) -> float:
        """N · M₄ / M₂²: 3 for normal data (nothing is subtracted); NaN for constant data."""
        sd = self.sd
        return self.m4 / self.count / sd / sd / sd / sd if sd > 0 else math.nan

    def __add__(self, other: Moments, /) -> Moments:
        if not self.count or not other.count:
            return other if not self.count else self
        count = self.count + other.count
        alpha, beta = other.count / count, self.count / count
        delta = other.mean - self.mean
        square = delta * delta
        between = self.count * alpha  # n_a n_b / n
        return Moments(
            count,
            self.mean + alpha * delta,
            self.m2 + other.m2 + between * square,
            self.m3
            + other.m3
            + between * (beta - alpha) * square * delta
            + 3.0 * delta * (beta * other.m2 - alpha * self.m2),
            self.m4
            + other.m4
            + between * (beta * beta - alpha * beta + alpha * alpha) * square * square
            + 6.0 * square * (beta * beta * other.m2 + alpha * alpha * self.m2)
            + 4.0 * delta * (beta * other.m3 - alpha * self.m3),
        )

    def pack(self) -> NDArray[np.float64]:
        """As one vector, in the order of `COLUMNS`."""
        return np.array(astuple(self), np.float64)

    @classmethod
    def unpack(cls, vector: NDArray[np.float64], /) -> Moments:
        """Read `pack`'s vector back."""
        count, *rest = vector.tolist()
        return cls(int(count), *rest)
