"""Sharpness: the largest eigenvalue of the loss's Hessian, on one batch.

    λ_max = max_{‖v‖ = 1} vᵀ ∇²L(θ) v

What it sees:
    The largest curvature of the loss in any direction of the parameters, by Lanczos' iteration from a random vector,
    stopped when the largest Ritz value is known to a thousandth of itself. No Hessian is written down.

Why it matters:
    Gradient descent with learning rate η is unstable along a direction of curvature above 2/η. Training at a constant
    rate drives sharpness up to that threshold and keeps it there (the edge of stability); what allows higher rates
    without divergence, normalisers among it, lowers sharpness early. The optimiser's own threshold: stability-ratio.

When it is wrong:
    It is the Hessian of one batch: exact for that batch, larger on average than that of all the data, the more so the
    smaller the batch. The interval is numerical only: from the Ritz value, which the eigenvalue cannot be below, to
    the Ritz value and its residual. Kinks have no second derivative: ReLU networks count as piecewise smooth. Under a
    normaliser sharpness falls as 1/‖w‖² for growing weights without the function being any flatter. With batch
    statistics the Hessian differs between training and evaluation mode. One-sided: strong negative curvature does not
    show.

Example:
    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])             # H = 2 XᵀX / 2 = diag(4, 1)
    >>> reading = sharpness(layer, torch.nn.functional.mse_loss, (x, torch.zeros(2, 1)))
    >>> round(reading.value, 4), reading.n
    (4.0, 2)

References:
    Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of stability".
    Lanczos 1950, "An iteration method for the solution of the eigenvalue problem".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.live.curvature import curvature
from holdfast.live.objective import Objective
from holdfast.live.replay import Mode
from holdfast.measures.lanczos import Tridiagonal, lanczos

QUANTITY = Quantity(
    "sharpness",
    "sharpness λmax",
    Unit.CURVATURE,
    "higher is worse",
    bounds=(float("-inf"), float("inf")),
    cost="many forwards and backwards",
)

PRODUCTS = 100
TOLERANCE = 1e-3
WATCHED_PRODUCTS = 30
"""At most, at a step of training: the interval says how near the largest eigenvalue these came."""


def sharpness(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batch: Any,
    *,
    mode: Mode = "as it was",
    products: int = PRODUCTS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    site: Site | None = None,
    step: int = 0,
) -> Reading | None:
    """Largest eigenvalue of the Hessian.

    Args:
        model: the model, which stays as it is.
        loss_fn: `(output, targets)` → a scalar.
        batch: `(inputs, targets)`; inputs as the model takes them.
        mode: how normalisers and dropout run: `"train"`, `"eval"`, or as the modules' flags say.
        products: Hessian products at most.
        tolerance: of the eigenvalue, by its residual, relative.
        seed: of the private generator that draws the first vector.
        site: where to note it; the model's root when `None`.
        step: the step.

    Returns:
        λ_max with its numerical interval; `None` where loss or gradient are not finite.
    """
    objective = Objective(model, loss_fn, batch, mode=mode)
    if not objective.at().finite:
        return None
    with curvature(objective) as operator:
        return largest(operator.__matmul__, objective, products, tolerance, seed, site or Site("", "weight"), step)


def largest(
    times: Callable[[Tensor], Tensor],
    objective: Objective,
    products: int,
    tolerance: float,
    seed: int,
    site: Site,
    step: int,
) -> Reading | None:
    """Largest eigenvalue of an operator on the parameters, as a reading.

    Args:
        times: the product with a flat vector.
        objective: whose parameters.
        products: at most.
        tolerance: by the residual, relative.
        seed: of the first vector.
        site: where to note it.
        step: the step.

    Returns:
        The reading; `None` where a product is not finite.
    """
    start = torch.randn(objective.dimension, generator=torch.Generator().manual_seed(seed))
    found = lanczos(times, start.to(objective.parameters[0]), products, until=lambda t: _settled(t, tolerance))
    if not np.isfinite(found.diagonal).all():
        return None
    value = float(found.values[-1])
    interval = (value, value + float(found.residuals[-1]))
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, objective.samples, interval=interval)


def _settled(found: Tridiagonal, tolerance: float) -> bool:
    return not np.isfinite(found.diagonal[-1]) or bool(
        found.residuals[-1] <= tolerance * max(abs(found.values[0]), abs(found.values[-1]))
    )
