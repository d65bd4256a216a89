"""`PairedDifference`: how each feature changed over the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray
from numpy.typing import NDArray
from torch import Tensor

from holdfast.core.errors import StatisticError
from holdfast.stats.features import Features


@dataclass(frozen=True, slots=True, eq=False)
class PairedDifference:
    """Mean and scatter of d_ij = h_j(x_i; θ′) − h_j(x_i; θ), the same samples under moved parameters.

    Args:
        n: how many samples.
        mean: d̄_j of each feature, in the tensor's unit.
        m2: Σ_i (d_ij − d̄_j)².

    Example:
        >>> difference = PairedDifference(4, np.array([0.5]), np.array([0.0]))  # every sample moved by 0.5
        >>> difference.drift_squared(np.array([1.0]))
        0.25
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("n", "mean", "m2")

    n: int
    mean: Float64[ndarray, channels]
    m2: Float64[ndarray, channels]

    @classmethod
    def empty(cls, channels: int = 0) -> PairedDifference:
        """Of no data; without channels it merges with any other."""
        return cls(0, np.zeros(channels), np.zeros(channels))

    @classmethod
    def of(cls, reference: Features, current: Features) -> PairedDifference:
        """The difference of two observations of the same samples, in the same order.

        Args:
            reference: before the parameters moved.
            current: after.

        Returns:
            Current − reference. A feature that is not finite for some sample has a mean that is not finite.

        Raises:
            StatisticError: the two have different shapes.
        """
        if reference.values.shape != current.values.shape:
            raise StatisticError(
                f"the same {reference.samples} samples of {reference.channels} features",
                f"{current.samples} of {current.channels}",
                "observe one batch twice, with nothing dropped in between",
            )
        d = (current.values.double() - reference.values.double()).cpu().numpy()
        if not len(d):
            return cls.empty(current.channels)
        with np.errstate(invalid="ignore", over="ignore"):
            mean = d.mean(0)
            return cls(len(d), mean, np.square(d - mean).sum(0))

    @property
    def channels(self) -> int:
        """How many features."""
        return len(self.mean)

    @property
    def variance(self) -> Float64[ndarray, channels]:
        """s²_d = M₂ / (n − 1), the unbiased variance of one difference; NaN below two samples."""
        return self.m2 / (self.n - 1) if self.n > 1 else np.full_like(self.m2, np.nan)

    def drift_squared(self, reference_sd: Float64[ndarray, channels] | Float[Tensor, channels]) -> float:
        """Mean over the features of (d̄² − s²_d / n) / σ²: an unbiased estimate of the squared drift.

        d̄² alone overstates the square of the true mean by the sampling variance s²_d / n. The estimate is
        averaged over features and may be negative: clip it last.

        Args:
            reference_sd: σ of each feature at the reference time. Features where it is not finite and positive,
                or where the difference is not finite, are left out.

        Returns:
            In squared reference SD; NaN when no feature is left.

        Raises:
            StatisticError: fewer than two samples.
        """
        if self.n < 2:
            raise StatisticError(
                "at least 2 samples", str(self.n), "observe a batch of 2 or more, or raise max_elements="
            )
        sd = np.asarray(reference_sd.cpu() if isinstance(reference_sd, Tensor) else reference_sd, np.float64)
        usable = np.isfinite(sd) & (sd > 0) & np.isfinite(self.mean) & np.isfinite(self.m2)
        if not usable.any():
            return float("nan")
        excess = self.mean[usable] ** 2 - self.variance[usable] / self.n
        return float((excess / sd[usable] ** 2).mean())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PairedDifference) and np.array_equal(self.pack(), other.pack())

    def __hash__(self) -> int:
        return hash(self.pack().tobytes())

    def __add__(self, other: PairedDifference, /) -> PairedDifference:
        if not self.channels or not other.channels:
            return self if self.channels else other
        if self.channels != other.channels:
            raise StatisticError(
                f"differences of {self.channels} features",
                f"differences of {other.channels}",
                "merge differences of one site only",
            )
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        share = other.n / n
        delta = other.mean - self.mean
        return PairedDifference(n, self.mean + share * delta, self.m2 + other.m2 + self.n * share * delta * delta)

    def pack(self) -> NDArray[np.float64]:
        """As one vector, one row of `COLUMNS` a feature."""
        return np.stack([np.full(self.channels, float(self.n)), self.mean, self.m2], 1).ravel()

    @classmethod
    def unpack(cls, vector: NDArray[np.float64], /) -> PairedDifference:
        """Read `pack`'s vector back."""
        rows = np.asarray(vector, np.float64).reshape(-1, 3)
        return cls(int(rows[0, 0]) if len(rows) else 0, rows[:, 1].copy(), rows[:, 2].copy())
