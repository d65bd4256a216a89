"""`Statistic`: the protocol of a mergeable summary of a tensor."""

from __future__ import annotations

from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

# `Self` would say it shorter, but the checker that the tests run knows it only where it decorates whole classes.
S = TypeVar("S", bound="Statistic")


@runtime_checkable
class Statistic(Protocol):
    """A mergeable summary: `a + b` is the statistic of the concatenated data.

    Exact for counts and sketch bins, to rounding for moments. Adding the statistic of no data changes nothing.
    `pack` and `unpack` carry it as one vector of float64, in the order of `COLUMNS` where that has a fixed
    length (a per-channel statistic is packed row by row, one row of `COLUMNS` a channel).
    """

    COLUMNS: ClassVar[tuple[str, ...]]

    def __add__(self: S, other: S, /) -> S:
        """The statistic of both data sets together."""
        ...

    def pack(self) -> NDArray[np.float64]:
        """As one vector."""
        ...

    @classmethod
    def unpack(cls: type[S], vector: NDArray[np.float64], /) -> S:
        """Read `pack`'s vector back."""
        ...
