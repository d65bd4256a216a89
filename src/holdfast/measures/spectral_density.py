"""The spectrum of the Hessian or the Gauss–Newton matrix, by stochastic Lanczos quadrature.

    ∫ f dμ = tr f(H) / d ≈ mean over probes v of Σ_k τ_k² f(θ_k)

with the Ritz values θ_k of Lanczos' iteration from v, fully reorthogonalised, and the first components τ_k of the
eigenvectors of its tridiagonal matrix: Gauss' quadrature for the spectral measure of v, exact for polynomials up to
degree 2 × steps − 1.

References:
    Ubaru, Chen & Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature".
    Ghorbani, Krishnan & Xiao 2019, "An investigation into neural net optimization via Hessian eigenvalue density".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.reading import Table
from holdfast.core.units import Unit
from holdfast.live.curvature import Kind, curvature
from holdfast.live.objective import Objective
from holdfast.live.replay import Mode
from holdfast.measures.lanczos import ROUNDING, Tridiagonal, lanczos, rademacher
from holdfast.measures.student import student_975


@dataclass(frozen=True, slots=True)
class SpectralDensity:
    """Where the eigenvalues lie, as seen by some random probes.

    Args:
        probes: what Lanczos found from each.
        dimension: how many eigenvalues there are.
        n: samples of the batch.
        rounding: eigenvalues of this size and below are rounding.
        step: the optimiser step.
        kind: of which matrix.
    """

    probes: tuple[Tridiagonal, ...]
    dimension: int
    n: int
    rounding: float
    step: int = 0
    kind: Kind = "hessian"

    @property
    def smallest(self) -> float:
        """The smallest Ritz value: the smallest eigenvalue is no larger."""
        return min(float(each.values[0]) for each in self.probes)

    @property
    def largest(self) -> float:
        """The largest Ritz value: the largest eigenvalue is no smaller."""
        return max(float(each.values[-1]) for each in self.probes)

    def moment(self, power: int) -> tuple[float, tuple[float, float]]:
        """Mean p-th power of the eigenvalues, tr Hᵖ / d.

        Args:
            power: p.

        Returns:
            The estimate and its 95 % interval over probes (Student's t; where a few eigenvalues dominate, eight
            probes cover in about 0.9 of cases).
        """
        return over_probes([float(each.weights @ each.values**power) for each in self.probes])

    def quantile(self, q: float) -> Float64[ndarray, probes]:
        """The size |λ| that a share q of all eigenvalues does not exceed.

        Args:
            q: between 0 and 1.

        Returns:
            One estimate a probe.
        """
        return np.array([_quantile(np.abs(each.values), each.weights, q) for each in self.probes])

    def table(self, points: int = 128, width: float | None = None) -> Table:
        """The density on a grid, each Ritz value spread as a normal curve.

        Args:
            points: of the grid.
            width: SD of the curves; a hundredth of the spectrum's range when `None`.

        Returns:
            One row a point of the grid; columns `density` (its integral is 1), and `low` and `high` of its 95 %
            interval over probes.
        """
        span = max(self.largest - self.smallest, self.rounding, 1e-300)
        sd = width or span / 100
        grid = np.linspace(self.smallest - 3 * sd, self.largest + 3 * sd, points)
        curves = np.array([_spread(grid, each, sd) for each in self.probes])
        rows = [over_probes(curves[:, k].tolist()) for k in range(points)]
        return Table(
            f"{self.kind}-spectral-density",
            self.step,
            "per " + Unit.CURVATURE,
            tuple(f"{point:.6g}" for point in grid),
            ("density", "low", "high"),
            tuple((value, max(low, 0.0), high) for value, (low, high) in rows),
            self.n,
        )


def spectral_density(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batch: Any,
    *,
    kind: Kind = "hessian",
    mode: Mode = "as it was",
    probes: int = 8,
    steps: int = 40,
    seed: int = 0,
    step: int = 0,
) -> SpectralDensity | None:
    """Look at the whole spectrum.

    Args:
        model: the model, which stays as it is.
        loss_fn: `(output, targets)` → a scalar.
        batch: `(inputs, targets)`; inputs as the model takes them.
        kind: `"hessian"` or `"gauss-newton"`.
        mode: how normalisers and dropout run: `"train"`, `"eval"`, or as the modules' flags say.
        probes: random sign vectors; two at least.
        steps: products for each.
        seed: of the private generator that draws them.
        step: the optimiser step, to note.

    Returns:
        The density; `None` where loss, gradient or a product are not finite.

    Raises:
        InputError: fewer than two probes, or no steps.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])             # H = diag(4, 1)
        >>> density = spectral_density(layer, nn.functional.mse_loss, (x, torch.zeros(2, 1)))
        >>> round(density.smallest, 4), round(density.largest, 4), round(density.moment(1)[0], 4)
        (1.0, 4.0, 2.5)
    """
    if probes < 2 or steps < 1:
        raise InputError("two probes or more of at least one step", f"{probes} of {steps}", "type: probes=8, steps=40")
    objective = Objective(model, loss_fn, batch, mode=mode)
    if not objective.at().finite:
        return None
    like = objective.parameters[0]
    generator = torch.Generator().manual_seed(seed)
    with curvature(objective, kind) as operator:
        found = tuple(
            lanczos(operator.__matmul__, rademacher(objective.dimension, generator, like), steps) for _ in range(probes)
        )
    if not all(np.isfinite(each.diagonal).all() for each in found):
        return None
    scale = max(float(np.abs(each.values).max()) for each in found)
    rounding = ROUNDING * torch.finfo(like.dtype).eps * scale
    return SpectralDensity(found, objective.dimension, objective.samples, rounding, step, kind)


def over_probes(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean and 95 % interval.

    Args:
        values: one a probe, two at least.

    Returns:
        Both.
    """
    mean = float(np.mean(values))
    half = student_975(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def _quantile(sizes: Float64[ndarray, k], weights: Float64[ndarray, k], q: float) -> float:
    order = np.argsort(sizes)
    place = int(np.searchsorted(np.cumsum(weights[order]), q - 1e-9))
    return float(sizes[order][min(place, len(sizes) - 1)])


def _spread(grid: Float64[ndarray, points], probe: Tridiagonal, sd: float) -> Float64[ndarray, points]:
    distance = (grid[:, None] - probe.values) / sd
    return np.exp(-(distance**2) / 2) @ probe.weights / (sd * math.sqrt(2 * math.pi))
