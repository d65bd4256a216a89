"""What the measures of rank share: shares of variance, the fixed projection, the jackknife over parts of a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy import ndarray
from numpy.typing import NDArray
from torch import Tensor

from holdfast.measures.resampling import group_sizes
from holdfast.measures.student import student_975
from holdfast.stats.covariance import Covariance

DIMENSIONS = 64
"""Wider sites are projected to so many."""

SAMPLES_PER_DIMENSION = 10
"""Below this there is no figure: at 10 the entropy of isotropic data is 1/20 nat too low before the correction."""

PARTS = 12
"""Of a window, each left out in turn: 11 degrees of freedom widen an interval by 12 %, and each costs a spectrum."""

_SEED = 6_061


def parts_of(values: Tensor) -> list[Covariance]:
    """Covariances of runs of neighbouring samples, which together are the covariance of all.

    Args:
        values: `(samples, features)`; more than `DIMENSIONS` features are projected first.

    Returns:
        At most `PARTS` covariances; samples that are not finite are in none.

    Example:
        >>> parts = parts_of(torch.ones(100, 3))
        >>> len(parts), sum(part.count for part in parts)
        (12, 100)
    """
    rows = projected(values)
    rows = rows[rows.isfinite().all(1)]
    sizes = group_sizes(len(rows), PARTS).tolist() if len(rows) else []
    return [Covariance.of(part) for part in torch.split(rows, sizes)] if sizes else []


def projected(values: Tensor) -> Tensor:
    """Features, or `DIMENSIONS` random directions of theirs.

    The directions are orthonormal, drawn once for each width from a private generator: what varies equally in all
    directions still does, and a rank up to `DIMENSIONS` is kept, though not the shares of the variance.

    Args:
        values: `(samples, features)`.

    Returns:
        `(samples, at most 64)`.
    """
    if values.shape[1] <= DIMENSIONS:
        return values
    directions = torch.from_numpy(_directions(values.shape[1])).to(values.device)
    with torch.autocast(values.device.type, enabled=False):  # a model's own would round to 8 bits
        return values.float() @ directions


@lru_cache(maxsize=16)
def _directions(width: int) -> Float32[ndarray, "width dimensions"]:
    normal = np.random.default_rng((_SEED, width)).standard_normal((width, DIMENSIONS))
    return np.linalg.qr(normal)[0].astype(np.float32)


def merged(window: Sequence[Covariance]) -> Covariance | None:
    """The covariance of a whole window.

    Args:
        window: of its parts.

    Returns:
        The covariance; `None` when there are fewer than 10 samples a dimension, or nothing varies.
    """
    whole = sum(window, Covariance.empty())
    trace = float(np.trace(whole.m2))
    enough = whole.count >= SAMPLES_PER_DIMENSION * whole.dimensions
    return whole if whole.dimensions and enough and np.isfinite(trace) and trace > 0 else None


def shares(m2: Float64[ndarray, "*stack dimensions dimensions"]) -> Float64[ndarray, "*stack dimensions"]:
    """Share of the variance along each principal direction, p = λ / Σλ, rising.

    Args:
        m2: covariances up to a factor.

    Example:
        >>> shares(np.diag([3.0, 1.0])).tolist()
        [0.25, 0.75]
    """
    eigenvalues = np.maximum(np.linalg.eigvalsh(m2), 0.0)
    return eigenvalues / eigenvalues.sum(-1, keepdims=True)


def jackknifed(
    figure: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    window: Sequence[Covariance],
    whole: Covariance,
) -> tuple[float, float | None]:
    """A figure of a covariance without its bias of order 1/n, and half its 95 % interval, by leaving out each part.

    Args:
        figure: of each of a stack of covariances `(stack, dimensions, dimensions)`, up to their factors.
        window: the parts.
        whole: all of them together.

    Returns:
        Figure and half width. With fewer than 8 parts that hold samples the figure is the plain one, without a width.

    References:
        Busing, Meijer & van der Leeden 1999, "Delete-m jackknife for unequal m" (eqs. 2 and 4).
    """
    parts = [part for part in window if part.count]
    plain = float(figure(whole.m2[None])[0])
    count = len(parts)
    if count < 8:
        return plain, None
    without = figure(np.stack([(whole - part).m2 for part in parts]))
    h = whole.count / np.array([part.count for part in parts], np.float64)  # n / m_j
    corrected = count * plain - float(((1 - 1 / h) * without).sum())
    pseudo = h * plain - (h - 1) * without
    variance = float((np.square(pseudo - corrected) / (h - 1)).mean())
    return corrected, student_975(count - 1) * float(np.sqrt(variance))
