"""`Gaussian`: mean and covariance of feature vectors, for the distances between normal distributions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from holdfast.core.errors import StatisticError
from holdfast.measures.sample import Sample, rows_of
from holdfast.stats.moments import Moments


class Gaussian(NamedTuple):
    """A normal distribution of vectors.

    Args:
        mean: `(features,)`.
        covariance: `(features, features)`, symmetric.

    Example:
        >>> Gaussian.of(np.array([[0.0, 0.0], [2.0, 4.0]])).covariance.tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """

    mean: Float64[ndarray, features]
    covariance: Float64[ndarray, "features features"]

    @classmethod
    def of(cls, sample: Sample) -> Gaussian:
        """Of rows `(samples, features)`: their mean and covariance (divided by n).

        Args:
            sample: the rows.

        Raises:
            StatisticError: no data, or values that are not finite.
        """
        rows = rows_of(sample)
        centred = rows - rows.mean(0)
        return cls(rows.mean(0), centred.T @ centred / len(rows))


Normal = Moments | Gaussian
"""What a distance between normal distributions is taken from: moments of values, or mean and covariance of vectors."""


def require_data(*moments: Moments) -> None:
    """Refuse moments of nothing.

    Args:
        moments: any number of them.

    Raises:
        StatisticError: one of them holds no data.
    """
    for each in moments:
        if not each.count:
            raise StatisticError("moments of some finite values", "moments of none", "observe a batch first")


def require_spread(moments: Moments) -> None:
    """Refuse moments of equal values.

    Args:
        moments: of one side.

    Raises:
        StatisticError: no data, or no spread.
    """
    require_data(moments)
    if not moments.sd > 0:
        raise StatisticError(
            "moments of values that vary",
            f"{moments.count} values that are all {moments.mean:g}",
            "use gaussian_w2, which needs no spread",
        )


def as_gaussian(side: Normal) -> Gaussian:
    """Moments of values as a distribution of vectors of length 1.

    Args:
        side: either kind.

    Returns:
        The same distribution.

    Raises:
        StatisticError: no data, or shapes that do not belong together.
    """
    if isinstance(side, Moments):
        require_data(side)
        return Gaussian(np.array([side.mean]), np.array([[side.variance]]))
    if side.covariance.shape != (len(side.mean),) * 2:
        raise StatisticError(
            f"a covariance of {len(side.mean)} features, as the mean has",
            f"shape {side.covariance.shape}",
            "type: Gaussian.of(rows)",
        )
    return side


def both(reference: Normal, current: Normal) -> tuple[Gaussian, Gaussian]:
    """Two distributions of vectors of one length.

    Args:
        reference: the one.
        current: the other.

    Returns:
        Both.

    Raises:
        StatisticError: no data, or different numbers of features.
    """
    first, second = as_gaussian(reference), as_gaussian(current)
    if len(first.mean) != len(second.mean):
        raise StatisticError(
            f"two distributions of {len(first.mean)} features",
            f"one of {len(second.mean)}",
            "compare distributions of one site only",
        )
    return first, second
