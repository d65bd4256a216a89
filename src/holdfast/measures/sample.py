"""What a distance is taken between: samples as arrays, and sketches of one scale."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from torch import Tensor

from holdfast.core.errors import StatisticError
from holdfast.stats.sketch import Sketch

Sample = Tensor | ndarray
"""Values `(samples,)`, or one row a sample `(samples, features)`, of any float type, on any device."""


def values_of(sample: Sample | Sketch) -> Float64[ndarray, samples]:
    """One value a sample.

    Args:
        sample: `(samples,)`.

    Returns:
        In float64, on the host.

    Raises:
        StatisticError: another number of axes, no samples, or a value that is not finite.
    """
    return _checked(sample, 1, "values (samples,)", "pass one feature, x[:, 0], or x.flatten() if they are one whole")


def rows_of(sample: Sample) -> Float64[ndarray, "samples features"]:
    """One row a sample.

    Args:
        sample: `(samples, features)`.

    Returns:
        In float64, on the host.

    Raises:
        StatisticError: another number of axes, no samples, or a value that is not finite.
    """
    return _checked(sample, 2, "rows (samples, features)", "type: x.flatten(1), or x.mean((2, 3)) for feature maps")


def require_same_width(reference: Float64[ndarray, "n features"], current: Float64[ndarray, "m others"]) -> None:
    """Refuse samples of different features.

    Args:
        reference: the one.
        current: the other.

    Raises:
        StatisticError: they have different numbers of features.
    """
    if reference.shape[1] != current.shape[1]:
        raise StatisticError(
            f"two samples of {reference.shape[1]} features",
            f"one of {current.shape[1]}",
            "compare samples of one site only",
        )


def cumulative(reference: Sketch, current: Sketch) -> tuple[Float64[ndarray, 65], Float64[ndarray, 65]]:
    """Both distribution functions at the edges of the bins, where a sketch knows them exactly.

    Args:
        reference: the one.
        current: the other, of the same scale.

    Returns:
        From 0 to 1.

    Raises:
        StatisticError: one of the two is empty, or the scales differ.
    """
    for each in (reference, current):
        if not each.count:
            raise StatisticError("a sketch of some finite values", "a sketch of none", "observe a batch first")
    _ = reference + current  # refuses different scales
    first, second = (np.concatenate([[0.0], np.cumsum(each.bins)]) / each.count for each in (reference, current))
    return first, second


def _checked(sample: Sample | Sketch, axes: int, expected: str, fix: str) -> ndarray:
    if isinstance(sample, Sketch):
        raise StatisticError(expected, "a sketch", "compare two samples, or two sketches")
    held = sample.detach().cpu().double().numpy() if isinstance(sample, Tensor) else np.asarray(sample, np.float64)
    if held.ndim != axes:
        raise StatisticError(expected, f"shape {tuple(held.shape)}", fix)
    if not held.size:
        raise StatisticError("at least one sample", f"shape {tuple(held.shape)}", "observe a batch first")
    bad = held.size - int(np.count_nonzero(np.isfinite(held)))
    if bad:
        raise StatisticError(
            "finite values", f"{bad} that are not", "leave them out: x[x.isfinite()], and count them apart"
        )
    return held
