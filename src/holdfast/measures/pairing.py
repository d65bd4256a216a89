"""What two observations of one site have in common: features with a unit, samples that are finite in both."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from holdfast.core.errors import StatisticError
from holdfast.stats.features import Features


def usable_features(reference: Features) -> Bool[ndarray, channels] | None:
    """Features that have a unit to measure a shift in.

    Args:
        reference: the site at the reference time.

    Returns:
        Where the reference SD is not collapsed; `None` when more than half of the features are collapsed, or when
        there are none: such a site gets no shift figure.
    """
    usable: Bool[ndarray, channels] = ~reference.collapsed.cpu().numpy()
    return usable if 2 * int(usable.sum()) >= len(usable) > 0 and usable.any() else None


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
    reference: Features, current: Features, usable: Bool[ndarray, channels]
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
    require_same_features(reference, current)
    if reference.samples != current.samples:
        raise StatisticError(
            f"the same {reference.samples} samples twice", f"{current.samples} in the second", "observe one batch twice"
        )
    scale = reference.sd.cpu().numpy()[usable]
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (numbers(current) - numbers(reference))[:, usable] / scale
    finite = np.isfinite(difference).all(1)
    return difference if finite.all() else difference[finite]


def numbers(features: Features) -> Float64[ndarray, "samples channels"]:
    """The values as float64 on the host.

    Args:
        features: of one site.

    Returns:
        One row a sample.
    """
    return features.values.detach().cpu().numpy().astype(np.float64)
