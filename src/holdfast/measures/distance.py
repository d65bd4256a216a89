"""Distances between two statistics of a site, in closed form: numbers, not readings, for whatever compares moments.

All three take the values of each side as one population: for shifts of single features use parameter-drift, where
opposite movements of two features do not cancel.

References:
    Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions".
"""

from __future__ import annotations

import math

from holdfast.core.errors import StatisticError
from holdfast.stats.moments import Moments


def standardised_mean_shift(reference: Moments, current: Moments) -> float:
    """|μ′ − μ| / σ: how far the mean moved, in reference SD.

    Args:
        reference: the earlier moments.
        current: the later ones.

    Returns:
        In reference SD.

    Raises:
        StatisticError: one of the two holds no data, or the reference does not vary.

    Example:
        >>> standardised_mean_shift(Moments(100, 0.0, 100.0, 0.0, 300.0), Moments(100, 2.0, 900.0, 0.0, 24300.0))
        2.0
    """
    _require_spread(reference)
    _require_data(current)
    return abs(current.mean - reference.mean) / reference.sd


def log_scale_ratio(reference: Moments, current: Moments) -> float:
    """|ln σ′ − ln σ|: how far the spread moved, in nats.

    Args:
        reference: the earlier moments.
        current: the later ones.

    Returns:
        In nats; 0.69 is a doubling or a halving.

    Raises:
        StatisticError: one of the two holds no data or does not vary.

    Example:
        >>> log_scale_ratio(Moments(100, 0.0, 100.0, 0.0, 300.0), Moments(100, 2.0, 900.0, 0.0, 24300.0)) / math.log(3)
        1.0
    """
    _require_spread(reference)
    _require_spread(current)
    return abs(math.log(current.sd / reference.sd))


def gaussian_w2(reference: Moments, current: Moments) -> float:
    """√(Δμ² + Δσ²): the 2-Wasserstein distance between normal distributions with these moments.

    Args:
        reference: the earlier moments.
        current: the later ones.

    Returns:
        In the tensor's own unit.

    Raises:
        StatisticError: one of the two holds no data.

    Example:
        >>> gaussian_w2(Moments(100, 0.0, 100.0, 0.0, 300.0), Moments(100, 2.0, 900.0, 0.0, 24300.0)) ** 2
        8.000000000000002
    """
    _require_data(reference)
    _require_data(current)
    return math.hypot(current.mean - reference.mean, current.sd - reference.sd)


def _require_data(moments: Moments) -> None:
    if not moments.count:
        raise StatisticError("moments of some finite values", "moments of none", "observe a batch first")


def _require_spread(moments: Moments) -> None:
    _require_data(moments)
    if not moments.sd > 0:
        raise StatisticError(
            "moments of values that vary",
            f"{moments.count} values that are all {moments.mean:g}",
            "use gaussian_w2, which needs no spread",
        )
