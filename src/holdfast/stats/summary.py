"""`Summary`: everything that is kept about a site as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from holdfast.stats.counts import Counts
from holdfast.stats.extremes import Extremes
from holdfast.stats.moments import Moments
from holdfast.stats.sketch import Sketch

_ENDS = np.cumsum([len(part.COLUMNS) for part in (Moments, Extremes, Counts)]).tolist()


@dataclass(frozen=True, slots=True)
class Summary:
    """Moments, extremes, counts and sketch of one tensor.

    Args:
        moments: of the finite values.
        extremes: of the finite values.
        counts: by kind.
        sketch: of the finite values.

    Example:
        >>> (Summary.empty() + Summary.empty()).counts.total
        0
    """

    COLUMNS: ClassVar[tuple[str, ...]] = (*Moments.COLUMNS, *Extremes.COLUMNS, *Counts.COLUMNS, *Sketch.COLUMNS)

    moments: Moments
    extremes: Extremes
    counts: Counts
    sketch: Sketch

    @classmethod
    def empty(cls) -> Summary:
        """Of no data."""
        return cls(Moments.empty(), Extremes.empty(), Counts.empty(), Sketch.empty())

    def __add__(self, other: Summary, /) -> Summary:
        return Summary(
            self.moments + other.moments,
            self.extremes + other.extremes,
            self.counts + other.counts,
            self.sketch + other.sketch,
        )

    def scaled(self, factor: float) -> Summary:
        """Of the same values times a factor; the counts stay, that of values beyond a threshold too.

        Args:
            factor: above 0.

        Returns:
            The summary; its sketch as `Sketch.scaled` says.
        """
        if factor == 1.0:
            return self
        count, mean, m2, m3, m4 = self.moments.pack().tolist()
        moments = Moments(int(count), mean * factor, m2 * factor**2, m3 * factor**3, m4 * factor**4)
        extremes = Extremes(self.extremes.low * factor, self.extremes.high * factor)
        return Summary(moments, extremes, self.counts, self.sketch.scaled(factor))

    def pack(self) -> NDArray[np.float64]:
        """As one vector, in the order of `COLUMNS`."""
        return np.concatenate([part.pack() for part in (self.moments, self.extremes, self.counts, self.sketch)])

    @classmethod
    def unpack(cls, vector: NDArray[np.float64], /) -> Summary:
        """Read `pack`'s vector back."""
        moments, extremes, counts, sketch = np.split(np.asarray(vector, np.float64), _ENDS)
        return cls(Moments.unpack(moments), Extremes.unpack(extremes), Counts.unpack(counts), Sketch.unpack(sketch))
