"""Gauss–Newton condition number κ: how unequal the curvatures are that the data demand.

    κ = λ_max(G) / λ_min(G),    G = Jᵀ (∇²_f ℓ) J

What it sees:
    The condition number of the Gauss–Newton matrix, which a convex loss makes positive semi-definite, so that it has
    one where the Hessian has none. Both ends by Lanczos' iteration from one random vector.

Why it matters:
    On a quadratic, gradient descent needs about κ/2 steps for each e-fold of the distance to the minimum.

When it is wrong:
    With more parameters than samples × outputs, a dead unit, or a bias before a normaliser, G is singular: its
    smallest eigenvalue is rounding and there is no figure; curvature-spread says more there. The smallest eigenvalue
    is the last that the iteration finds: what was found is an upper bound of it, κ a lower bound, and the interval
    reaches to infinity where the residual does not exclude zero. One batch; with batch statistics training and
    evaluation mode differ.

Example:
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])             # G = diag(4, 1)
    >>> round(gauss_newton_condition(layer, nn.functional.mse_loss, (x, torch.zeros(2, 1))).value, 3)
    4.0

References:
    Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent".
    Nesterov 2004, "Introductory lectures on convex optimization", theorem 2.1.15 (rates in κ).
"""

from __future__ import annotations

import math
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
from holdfast.measures.lanczos import ROUNDING, lanczos

QUANTITY = Quantity(
    "gauss-newton-condition",
    "condition number of the Gauss–Newton matrix",
    Unit.RATIO,
    "higher is worse",
    bounds=(1.0, math.inf),
    cost="many forwards and backwards",
    logarithmic=True,
)


def gauss_newton_condition(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batch: Any,
    *,
    mode: Mode = "as it was",
    products: int = 200,
    seed: int = 0,
    site: Site | None = None,
    step: int = 0,
) -> Reading | None:
    """Largest over smallest eigenvalue of the Gauss–Newton matrix.

    Args:
        model: the model, which stays as it is.
        loss_fn: `(output, targets)` → a scalar, convex in the output.
        batch: `(inputs, targets)`; inputs as the model takes them.
        mode: how normalisers and dropout run: `"train"`, `"eval"`, or as the modules' flags say.
        products: Gauss–Newton products at most.
        seed: of the private generator that draws the first vector.
        site: where to note it; the model's root when `None`.
        step: the step.

    Returns:
        κ with its numerical interval; `None` where the matrix is singular or has a negative eigenvalue (a loss that
        is not convex in the output), or loss or gradient are not finite.
    """
    objective = Objective(model, loss_fn, batch, mode=mode)
    if not objective.at().finite:
        return None
    start = torch.randn(objective.dimension, generator=torch.Generator().manual_seed(seed))
    like = objective.parameters[0]
    with curvature(objective, "gauss-newton") as operator:
        found = lanczos(operator.__matmul__, start.to(like), products)
    if not np.isfinite(found.diagonal).all():
        return None
    low, high = float(found.values[0]), float(found.values[-1])
    rounding = ROUNDING * torch.finfo(like.dtype).eps * high
    if not low > rounding:
        return None
    below = low - float(found.residuals[0]) - rounding
    top = (high + float(found.residuals[-1])) / below if below > 0 else math.inf
    where = site or Site("", "weight")
    return Reading(QUANTITY.name, where, step, high / low, QUANTITY.unit, objective.samples, interval=(high / low, top))
