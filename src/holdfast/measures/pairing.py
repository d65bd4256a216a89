"""What two observations of one site have in common: features with a unit, samples that are finite in both."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from holdfast.core.errors import StatisticError
from holdfast.stats.features import COLLAPSED_BELOW, Features


class Usable(NamedTuple):
    """Features that have a unit.

    Args:
        where: which of the site's features.
        sd: their SD at the reference time.
        every: whether they are all of the site's.
    """

    where: Bool[ndarray, channels]
    sd: Float64[ndarray, usable_channels]
    every: bool

    def columns(self, rows: Float64[ndarray, "samples channels"]) -> Float64[ndarray, "samples usable_channels"]:
        """The usable features' columns."""
        return rows if self.every else rows[:, self.where]


def usable_features(reference: Features) -> Usable | None:
    """Features that have a unit to measure a shift in.

    Args:
        reference: the site at the reference time.

    Returns:
        Where the reference SD is not collapsed, and that SD; `None` when more than half of the features are
        collapsed, or when there are none: such a site gets no shift figure.
    """
    sd = reference.sd.cpu().numpy()
    where = usable_sd(sd, reference.rms)
    count = int(np.count_nonzero(where))
    if count == 0 or 2 * count < len(sd):
        return None
    return Usable(where, sd, True) if count == len(sd) else Usable(where, sd[where], False)


def usable_sd(sd: Float64[ndarray, channels], rms: float) -> Bool[ndarray, channels]:
    """Where an SD is not collapsed: `~Features.collapsed`, without a dozen small torch calls.

    Args:
        sd: of each feature.
        rms: of the site.

    Returns:
        Where it is finite, above 0, and not below 1e-6 of the rms.
    """
    # Comparisons with NaN are false.
    return (sd > 0) & (sd >= COLLAPSED_BELOW * rms) & (sd < np.inf)


def require_same_features(reference: Features, current: Features) -> None:
    """Refuse two observations of different sites.

    Args:
        reference: the one.
        current: the other.

    Raises:
        StatisticError: they have different numbers of features.
    """
    if reference.channels != current.channels:
        raise StatisticError(
            f"two observations of {reference.channels} features",
            f"one of {current.channels}",
            "compare observations of one site only",
        )


def paired_difference(
    reference: Features, current: Features, usable: Usable
) -> Float64[ndarray, "samples usable_channels"]:
    """Difference of each sample in each usable feature, in reference SD, over the samples finite in both.

    Args:
        reference: before the parameters moved.
        current: after, of the same samples in the same order.
        usable: which features.

    Returns:
        d_ij / σ_ref,j.

    Raises:
        StatisticError: the two do not hold the same samples and features.
    """
    require_same_samples(reference, current)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = usable.columns(numbers(current) - numbers(reference)) / usable.sd
        # One sum tells of a NaN or an infinity anywhere.
        if math.isfinite(difference.sum()):
            return difference
    return difference[np.isfinite(difference).all(1)]


def paired_rows(
    reference: Features, current: Features
) -> tuple[Float64[ndarray, "samples usable_channels"], Float64[ndarray, "samples usable_channels"]] | None:
    """Both states of the same samples in the features that have a unit, in reference SD from the reference mean.

    Args:
        reference: before the parameters moved.
        current: after, of the same samples in the same order.

    Returns:
        One row a sample that is finite in both; `None` when more than half of the features are collapsed.

    Raises:
        StatisticError: the two do not hold the same samples and features.
    """
    require_same_samples(reference, current)
    usable = usable_features(reference)
    if usable is None:
        return None
    x, y = usable.columns(numbers(reference)), usable.columns(numbers(current))
    finite = np.isfinite(x).all(1) & np.isfinite(y).all(1)
    x, y = x[finite], y[finite]
    centre = x.mean(0) if len(x) else 0.0
    return (x - centre) / usable.sd, (y - centre) / usable.sd


def require_same_samples(reference: Features, current: Features) -> None:
    """Refuse two observations that are not of the same samples of one site.

    Args:
        reference: the one.
        current: the other.

    Raises:
        StatisticError: they have different numbers of samples or of features.
    """
    require_same_features(reference, current)
    if reference.samples != current.samples:
        raise StatisticError(
            f"the same {reference.samples} samples twice", f"{current.samples} in the second", "observe one batch twice"
        )


def numbers(features: Features) -> Float64[ndarray, "samples channels"]:
    """The values as float64 on the host.

    Args:
        features: of one site.

    Returns:
        One row a sample.
    """
    return features.values.detach().cpu().numpy().astype(np.float64)
