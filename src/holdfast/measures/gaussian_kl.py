"""Gaussian KL: the Kullback–Leibler divergence between normal distributions with the moments seen.

    KL = ln(σ₂/σ₁) + (σ₁² + Δμ²) / 2σ₂² − ½                                        of values
    KL = ½ [tr(Σ₂⁻¹ Σ₁) + Δμᵀ Σ₂⁻¹ Δμ − d + ln(det Σ₂ / det Σ₁)]                    of vectors
    symmetric form: (KL(1‖2) + KL(2‖1)) / 2

What it sees:
    The nats lost when values of the reference (1) are taken for values of the current distribution (2). Without a
    unit. For small moves it is Δμ²/2σ² + (Δ ln σ)², so that mean and spread count alike.

Why it matters:
    It is what the next layer would have to learn anew, were it a density model of its input.

When it is wrong:
    It knows two moments. It is not symmetric, and explodes as the current spread goes to 0: an input that dies makes a
    huge figure, one that wakes a small one; the symmetric form shows both. Between independent batches of B standard
    normal values it is about 2/B. With a covariance it needs more samples than features on both sides. Over a stored
    run it compares *different batches* under *moved parameters*: observed drift and not internal covariate shift.

Example:
    >>> before, after = Moments(100, 0.0, 100.0, 0.0, 300.0), Moments(100, 2.0, 900.0, 0.0, 24300.0)
    >>> round(gaussian_kl(before, after), 4), round(gaussian_kl(after, before), 4)
    (0.8764, 4.9014)
    >>> round(gaussian_kl(before, after, symmetric=True), 4)
    2.8889

References:
    Kullback & Leibler 1951, "On information and sufficiency".
    Jeffreys 1946, "An invariant form for the prior probability in estimation problems" (the symmetric form, as a sum).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from holdfast.core.errors import StatisticError
from holdfast.core.quantity import Quantity
from holdfast.core.units import Unit
from holdfast.measures.gaussian import Gaussian, Normal, both, require_spread
from holdfast.stats.moments import Moments

QUANTITY = Quantity("gaussian-kl", "Gaussian KL", Unit.LOG_RATIO, "neither", logarithmic=True)


def gaussian_kl(reference: Normal, current: Normal, *, symmetric: bool = False) -> float:
    """KL(reference ‖ current) of normal distributions.

    Args:
        reference: moments of values, or a `Gaussian` of vectors.
        current: the same kind.
        symmetric: the mean of both directions instead (half of Jeffreys' divergence).

    Returns:
        In nats.

    Raises:
        StatisticError: one of the two holds no data, does not vary in some direction, or has other features.
    """
    if symmetric:
        return (gaussian_kl(reference, current) + gaussian_kl(current, reference)) / 2
    if isinstance(reference, Moments) and isinstance(current, Moments):
        require_spread(reference)
        require_spread(current)
        shift = (current.mean - reference.mean) / current.sd
        return _of_ratio(reference.variance / current.variance) + shift * shift / 2
    first, second = both(reference, current)
    root = _cholesky(second)
    _cholesky(first)
    from scipy.linalg import eigh, solve_triangular

    whitened = solve_triangular(root, second.mean - first.mean, lower=True)
    # Σ₁ v = λ Σ₂ v: trace and determinants are sums over λ of what one value would give.
    ratios = eigh(first.covariance, second.covariance, eigvals_only=True)
    return sum(_of_ratio(each) for each in ratios.tolist()) + float(whitened @ whitened) / 2


def _of_ratio(ratio: float) -> float:
    """(r − 1 − ln r) / 2 of a ratio of variances: what KL is without a shift, never below 0."""
    return max(0.0, (ratio - 1 - math.log(ratio)) / 2)


def _cholesky(side: Gaussian) -> Float64[ndarray, "features features"]:
    """The root of a covariance that has all directions."""
    values = np.linalg.eigvalsh(side.covariance)
    rank = int(np.count_nonzero(values > len(values) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)))
    if rank < len(values):
        raise StatisticError(
            f"a covariance of rank {len(values)}",
            f"one of rank {rank}",
            "give more samples than features, or use gaussian_w2, which needs no inverse",
        )
    return np.linalg.cholesky(side.covariance)
