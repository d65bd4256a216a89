"""`Covariance`: how features vary together over samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from numpy.typing import NDArray
from torch import Tensor

from holdfast.core.errors import StatisticError


@dataclass(frozen=True, slots=True, eq=False)
class Covariance:
    """Count, mean and M₂ = Σ (x − mean)(x − mean)ᵀ of samples of several features.

    Args:
        count: how many samples, all of their features finite.
        mean: of each feature; 0 where there are no samples.
        m2: Σ (x − mean)(x − mean)ᵀ, symmetric.

    Example:
        >>> import torch
        >>> a, b = (Covariance.of(torch.tensor([[0.0, low], [2.0, low + 2.0]])) for low in (0.0, 2.0))
        >>> (a + b).mean.tolist(), (a + b).matrix.tolist()
        ([1.0, 2.0], [[1.0, 1.0], [1.0, 2.0]])
        >>> (a + b) - b == a
        True

    References:
        Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance: analysis and recommendations",
        eq. 2.1, with outer products in the place of squares.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("entry",)  # count, mean, and the rows of M₂'s upper triangle

    count: int
    mean: Float64[ndarray, dimensions]
    m2: Float64[ndarray, "dimensions dimensions"]

    @classmethod
    def empty(cls, dimensions: int = 0) -> Covariance:
        """Of no data; without dimensions it merges with any other."""
        return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    @classmethod
    def of(cls, values: Tensor) -> Covariance:
        """Of the value of every feature for every sample.

        Args:
            values: `(samples, features)`; a sample of which a feature is not finite is left out.

        Raises:
            StatisticError: another shape.
        """
        if values.ndim != 2:
            raise StatisticError(
                "values of shape (samples, features)",
                f"shape {tuple(values.shape)}",
                "flatten first: values.flatten(1)",
            )
        x = values.detach().cpu().double().numpy()
        x = x[np.isfinite(x).all(1)]
        if not len(x):
            return cls.empty(values.shape[1])
        mean = x.mean(0)
        x = x - mean
        return cls(len(x), mean, x.T @ x)

    @property
    def dimensions(self) -> int:
        """How many features."""
        return len(self.mean)

    @property
    def matrix(self) -> Float64[ndarray, "dimensions dimensions"]:
        """M₂ / n (divided by n, not by n − 1); NaN without data."""
        return self.m2 / (self.count or np.nan)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Covariance) and np.array_equal(self.pack(), other.pack())

    def __hash__(self) -> int:
        return hash(self.pack().tobytes())

    def __add__(self, other: Covariance, /) -> Covariance:
        self._check(other)
        if not self.count or not other.count:
            return self if self.count or not other.dimensions else other
        count = self.count + other.count
        delta = other.mean - self.mean
        between = self.count * other.count / count * np.outer(delta, delta)
        return Covariance(count, self.mean + other.count / count * delta, self.m2 + other.m2 + between)

    def __sub__(self, part: Covariance, /) -> Covariance:
        """What is left when a part that was merged before is taken away, to rounding of the whole's entries."""
        self._check(part)
        count = self.count - part.count
        if not part.count:
            return self
        if count <= 0:
            return Covariance.empty(self.dimensions)
        mean = self.mean + part.count / count * (self.mean - part.mean)
        delta = part.mean - mean
        between = count * part.count / self.count * np.outer(delta, delta)
        return Covariance(count, mean, self.m2 - part.m2 - between)

    def _check(self, other: Covariance) -> None:
        if self.dimensions and other.dimensions and self.dimensions != other.dimensions:
            raise StatisticError(
                f"a covariance of {self.dimensions} dimensions",
                f"one of {other.dimensions}",
                "merge statistics of one site only",
            )

    def pack(self) -> NDArray[np.float64]:
        """As one vector: count, mean, and the rows of the upper triangle of M₂."""
        return np.concatenate([[self.count], self.mean, self.m2[np.triu_indices(self.dimensions)]])

    @classmethod
    def unpack(cls, vector: NDArray[np.float64], /) -> Covariance:
        """Read `pack`'s vector back."""
        vector = np.asarray(vector, np.float64)
        dimensions = (int(np.sqrt(8 * len(vector) + 1) + 0.5) - 3) // 2  # of 1 + d + d (d + 1) / 2 entries
        m2 = np.zeros((dimensions, dimensions))
        m2[np.triu_indices(dimensions)] = vector[1 + dimensions :]
        m2 = np.triu(m2) + np.triu(m2, 1).T
        return cls(int(vector[0]), vector[1 : 1 + dimensions].copy(), m2)
