"""Standardised mean shift: how far the mean of a site's values moved, in its own spread.

    |μ′ − μ| / σ

What it sees:
    The shift of the mean of all of a site's values together, in SDs at the reference time.

Why it matters:
    The simplest shift there is, from moments alone, so from any two summaries of a stored run.

When it is wrong:
    All features are one population: opposite shifts of two features cancel; see observed-drift and parameter-drift,
    which average over features. Between independent batches of B values its mean is 2/√(πB). Over a stored run it
    compares *different batches* under *moved parameters*: observed drift and not internal covariate shift.

Example:
    >>> standardised_mean_shift(Moments(100, 0.0, 100.0, 0.0, 300.0), Moments(100, 2.0, 900.0, 0.0, 24300.0))
    2.0

References:
    Cohen 1988, "Statistical power analysis for the behavioral sciences", chapter 2 (with the reference SD as unit it is
    Glass's Δ).
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.units import Unit
from holdfast.measures.gaussian import require_data, require_spread
from holdfast.stats.moments import Moments

QUANTITY = Quantity(
    "standardised-mean-shift", "standardised mean shift", Unit.REFERENCE_SD, "neither", logarithmic=True
)


def standardised_mean_shift(reference: Moments, current: Moments) -> float:
    """|μ′ − μ| / σ: how far the mean moved, in reference SD.

    Args:
        reference: the earlier moments.
        current: the later ones.

    Returns:
        In reference SD.

    Raises:
        StatisticError: one of the two holds no data, or the reference does not vary.
    """
    require_spread(reference)
    require_data(current)
    return abs(current.mean - reference.mean) / reference.sd
