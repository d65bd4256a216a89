"""Lanczos' iteration with full reorthogonalisation: a symmetric operator as a small tridiagonal matrix.

References:
    Golub & Van Loan 2013, "Matrix computations", section 10.3 (loss of orthogonality and its cure).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray
from torch import Tensor

ROUNDING = 32
"""Times the type's epsilon, of the largest eigenvalue: what a product of some tens of roundings may be wrong by."""


@dataclass(frozen=True)
class Tridiagonal:
    """What Lanczos found: T = Qᵀ A Q, with the starting vector as the first column of Q.

    Args:
        diagonal: α of T.
        beside: β of T, one less.
        rest: ‖A Q − Q T‖, the next β: how much of the operator leads out of what was explored; 0 where nothing does.
    """

    diagonal: Float64[ndarray, k]
    beside: Float64[ndarray, k_less_one]
    rest: float

    @cached_property
    def _eigen(self) -> tuple[Float64[ndarray, k], Float64[ndarray, "k k"]]:
        dense = np.diag(self.diagonal) + np.diag(self.beside, 1) + np.diag(self.beside, -1)
        values, vectors = np.linalg.eigh(dense)
        return values, vectors

    @property
    def values(self) -> Float64[ndarray, k]:
        """Ritz values, rising."""
        return self._eigen[0]

    @property
    def weights(self) -> Float64[ndarray, k]:
        """Share of the starting vector at each Ritz value; the sum is 1."""
        return self._eigen[1][0] ** 2

    @property
    def residuals(self) -> Float64[ndarray, k]:
        """At each Ritz value: an eigenvalue of the operator is no farther away than this."""
        return self.rest * np.abs(self._eigen[1][-1])


@torch.no_grad()
def lanczos(
    times: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    *,
    until: Callable[[Tridiagonal], bool] = lambda found: False,
) -> Tridiagonal:
    """Explore an operator from one vector.

    Args:
        times: the product of the operator, which is symmetric, with a vector.
        start: where to begin, not zero.
        steps: products at most; no more than the dimension are needed.
        until: stop early when this holds.

    Returns:
        The tridiagonal matrix, smaller than `steps` where the vector lies in an invariant subspace.

    Example:
        >>> found = lanczos(lambda v: torch.tensor([1.0, 2.0, 5.0]) * v, torch.ones(3), 9)
        >>> found.values.round(5).tolist(), found.weights.round(5).tolist()
        ([1.0, 2.0, 5.0], [0.33333, 0.33333, 0.33333])
    """
    steps = min(steps, start.numel())
    basis = start.new_empty(steps, start.numel())
    basis[0] = start / start.norm()
    diagonal: list[float] = []
    beside: list[float] = []
    eps = torch.finfo(start.dtype).eps
    while True:
        k = len(diagonal)
        w = times(basis[k])
        diagonal.append(float(torch.dot(w.double(), basis[k].double())))
        for _ in range(2):  # twice is enough
            w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
        rest = float(w.double().norm())
        scale = max(map(abs, diagonal + beside))
        # What is left is rounding: the subspace is invariant, or the whole space is explored.
        ended = not rest > ROUNDING * eps * scale or k + 1 == start.numel()
        found = Tridiagonal(np.array(diagonal), np.array(beside), 0.0 if ended else rest)
        if ended or k + 1 == steps or until(found):
            return found
        beside.append(rest)
        basis[k + 1] = w / w.norm()


def rademacher(dimension: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Random signs.

    Args:
        dimension: how many.
        generator: a private one, on the CPU.
        like: of the type and on the device of this.

    Returns:
        +1 or −1.
    """
    return (2 * torch.randint(2, (dimension,), generator=generator) - 1).to(like)
