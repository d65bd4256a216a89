"""Gaussian W2: the 2-Wasserstein distance between normal distributions with the moments seen.

    W2² = Δμ² + Δσ²                                            of values
    W2² = |Δμ|² + tr(Σ₁ + Σ₂ − 2 (Σ₂^½ Σ₁ Σ₂^½)^½)             of vectors, with their full covariance

What it sees:
    Mean and spread in one figure, in the unit of the values; with a covariance also how features turn into each
    other. Where Σ₁ and Σ₂ commute the trace is Σ_j (√λ₁j − √λ₂j)².

Why it matters:
    A closed form that needs no samples, only moments that add up over batches and ranks. For feature vectors it is the
    Fréchet distance, squared known as FID.

When it is wrong:
    It knows two moments: any change of shape beyond them is 0 to it. Of values pooled over features, opposite
    movements cancel. Between independent batches of B standard normal values W2² is about 3/B; with a covariance of d
    features from n samples it is biased upwards by some d²/n: compare equal n only. Over a stored run it is the
    distance between summaries of *different batches* under *moved parameters*, in SDs of the earlier one: observed
    drift and not internal covariate shift.

Example:
    >>> gaussian_w2(Moments(100, 0.0, 100.0, 0.0, 300.0), Moments(100, 2.0, 900.0, 0.0, 24300.0)) ** 2
    8.000000000000002
    >>> round_, flat = np.eye(2), np.diag([1.0, 9.0])
    >>> gaussian_w2(Gaussian(np.zeros(2), round_), Gaussian(np.zeros(2), flat))
    2.0

References:
    Dowson & Landau 1982, "The Fréchet distance between multivariate normal distributions".
    Bhatia, Jain & Lim 2019, "On the Bures–Wasserstein distance between positive definite matrices", theorem 1.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from holdfast.core.quantity import Quantity
from holdfast.core.units import Unit
from holdfast.measures.gaussian import Gaussian, Normal, both, require_data
from holdfast.stats.moments import Moments

QUANTITY = Quantity("gaussian-w2", "Gaussian W2", Unit.REFERENCE_SD, "neither", logarithmic=True)


def gaussian_w2(reference: Normal, current: Normal) -> float:
    """The 2-Wasserstein distance between normal distributions.

    Args:
        reference: moments of values, or a `Gaussian` of vectors.
        current: the same kind.

    Returns:
        In the tensor's own unit.

    Raises:
        StatisticError: one of the two holds no data, or they have different numbers of features.
    """
    if isinstance(reference, Moments) and isinstance(current, Moments):
        require_data(reference, current)
        return math.hypot(current.mean - reference.mean, current.sd - reference.sd)
    first, second = both(reference, current)
    return math.hypot(float(np.linalg.norm(second.mean - first.mean)), _bures(first, second))


def _bures(first: Gaussian, second: Gaussian) -> float:
    """√tr(Σ₁ + Σ₂ − 2 (Σ₂^½ Σ₁ Σ₂^½)^½) as min_U ‖Σ₁^½ − Σ₂^½ U‖ over rotations U.

    The least is at U = W Vᵀ with Σ₂^½ Σ₁^½ = W S Vᵀ, whose singular values S are those under the trace. Traces of
    near-equal matrices would cancel and leave √ε of the scale; the norm of a difference leaves ε.
    """
    a, b = _root(first.covariance), _root(second.covariance)
    w, _, vt = np.linalg.svd(b @ a)
    return float(np.linalg.norm(a - b @ (w @ vt)))


def _root(covariance: Float64[ndarray, "features features"]) -> Float64[ndarray, "features features"]:
    """The symmetric square root; eigenvalues below 0 are rounding."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
