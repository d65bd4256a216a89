"""`Extremes`: the least and the greatest value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Extremes:
    """The least and the greatest finite value.

    Args:
        low: inf when there are none.
        high: −inf when there are none.

    Example:
        >>> Extremes(-1.0, 2.0) + Extremes(0.0, 3.0)
        Extremes(low=-1.0, high=3.0)
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("low", "high")

    low: float
    high: float

    @classmethod
    def empty(cls) -> Extremes:
        """Of no data."""
        return cls(math.inf, -math.inf)

    def __add__(self, other: Extremes, /) -> Extremes:
        return Extremes(min(self.low, other.low), max(self.high, other.high))

    def pack(self) -> NDArray[np.float64]:
        """As one vector, in the order of `COLUMNS`."""
        return np.array((self.low, self.high), np.float64)

    @classmethod
    def unpack(cls, vector: NDArray[np.float64], /) -> Extremes:
        """Read `pack`'s vector back."""
        return cls(*vector.tolist())
