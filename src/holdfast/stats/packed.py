"""`Packed`: a statistic that is still the vector in which it was computed."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


class Packed:
    """A statistic on its way to where it is kept: it need not be unpacked to be written.

    Args:
        kind: the statistic's class.
        vector: as its `pack` gives it.

    Example:
        >>> from holdfast.stats.counts import Counts
        >>> one = Packed(Counts, np.array([3.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
        >>> (one + one).total, one.unpacked.zeros
        (6, 1)
    """

    __slots__ = ("kind", "vector")
    COLUMNS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, kind: type[Any], vector: NDArray[np.float64]) -> None:
        self.kind, self.vector = kind, vector

    @property
    def unpacked(self) -> Any:
        """The statistic itself."""
        return self.kind.unpack(self.vector)

    def pack(self) -> NDArray[np.float64]:
        """The vector."""
        return self.vector

    @classmethod
    def unpack(cls, vector: NDArray[np.float64], /) -> Packed:
        """Not known from the vector alone.

        Raises:
            TypeError: always.
        """
        raise TypeError("a packed statistic is read back by its own class")

    def __add__(self, other: Any, /) -> Any:
        return self.unpacked + (other.unpacked if isinstance(other, Packed) else other)
