"""`Counts`: how many values, and how many of them are zero, not finite, or beyond a threshold."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of values by kind.

    Args:
        total: all values, the ones that are not finite among them.
        zeros: exactly zero (of either sign).
        nan: not a number.
        positive_inf: +inf.
        negative_inf: −inf.
        beyond: finite and |x| above the threshold that the observer was given.

    Example:
        >>> counts = Counts(10, 4, 1, 1, 0, 2) + Counts(10, 0, 0, 0, 0, 2)
        >>> counts.finite, counts.zero_fraction, counts.beyond_fraction
        (18, 0.2222222222222222, 0.2222222222222222)
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("total", "zeros", "nan", "positive_inf", "negative_inf", "beyond")

    total: int
    zeros: int
    nan: int
    positive_inf: int
    negative_inf: int
    beyond: int

    @classmethod
    def empty(cls) -> Counts:
        """Of no data."""
        return cls(0, 0, 0, 0, 0, 0)

    @property
    def nonfinite(self) -> int:
        """How many are NaN or ±inf."""
        return self.nan + self.positive_inf + self.negative_inf

    @property
    def finite(self) -> int:
        """How many are neither NaN nor ±inf."""
        return self.total - self.nonfinite

    @property
    def zero_fraction(self) -> float:
        """Zeros among the finite values; NaN when there are none."""
        return self.zeros / self.finite if self.finite else math.nan

    @property
    def beyond_fraction(self) -> float:
        """Values beyond the threshold among the finite ones; NaN when there are none."""
        return self.beyond / self.finite if self.finite else math.nan

    @property
    def nonfinite_fraction(self) -> float:
        """NaN and ±inf among all values; NaN when there are none."""
        return self.nonfinite / self.total if self.total else math.nan

    def __add__(self, other: Counts, /) -> Counts:
        return Counts(
            self.total + other.total,
            self.zeros + other.zeros,
            self.nan + other.nan,
            self.positive_inf + other.positive_inf,
            self.negative_inf + other.negative_inf,
            self.beyond + other.beyond,
        )

    def pack(self) -> NDArray[np.float64]:
        """As one vector, in the order of `COLUMNS`."""
        return np.array(astuple(self), np.float64)

    @classmethod
    def unpack(cls, vector: NDArray[np.float64], /) -> Counts:
        """Read `pack`'s vector back."""
        return cls(*(int(value) for value in vector.tolist()))
