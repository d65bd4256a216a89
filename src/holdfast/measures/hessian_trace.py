"""Hessian trace: the sum of all curvatures of the loss, on one batch.

    tr H ≈ tr(Qᵀ H Q) + mean_i  g_iᵀ (I − Q Qᵀ) H (I − Q Qᵀ) g_i

What it sees:
    The sum of the Hessian's eigenvalues, by Hutch++: exactly on the subspace Q that a third of the products finds,
    and by random sign vectors g on what is left. Where the parameters are fewer than the products it is exact.

Why it matters:
    The average curvature: how much the loss rises, to second order, when the parameters are jittered by noise. Flat
    by this measure says more of the many directions than the largest eigenvalue does.

When it is wrong:
    Positive and negative eigenvalues cancel. It scales with the parametrisation: weights under a normaliser can be
    scaled without the function changing. The interval is Student's t over the random vectors g, given Q: approximate
    for few of them; the noise of the batch itself is not in it. With batch statistics the Hessian differs between
    training and evaluation mode.

Example:
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])             # H = diag(4, 1)
    >>> reading = hessian_trace(layer, nn.functional.mse_loss, (x, torch.zeros(2, 1)))
    >>> round(reading.value, 4), reading.n
    (5.0, 2)

References:
    Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix".
    Meyer, Musco, Musco & Woodruff 2021, "Hutch++: optimal stochastic trace estimation".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.live.curvature import curvature
from holdfast.live.objective import Objective
from holdfast.live.replay import Mode
from holdfast.measures.lanczos import rademacher
from holdfast.measures.spectral_density import over_probes

QUANTITY = Quantity(
    "hessian-trace",
    "trace of the Hessian",
    Unit.CURVATURE,
    "neither",
    bounds=(float("-inf"), float("inf")),
    cost="many forwards and backwards",
)


def hessian_trace(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batch: Any,
    *,
    mode: Mode = "as it was",
    products: int = 30,
    seed: int = 0,
    site: Site | None = None,
    step: int = 0,
) -> Reading | None:
    """Trace of the Hessian with its interval.

    Args:
        model: the model, which stays as it is.
        loss_fn: `(output, targets)` → a scalar.
        batch: `(inputs, targets)`; inputs as the model takes them.
        mode: how normalisers and dropout run: `"train"`, `"eval"`, or as the modules' flags say.
        products: Hessian products at most; six or more.
        seed: of the private generator that draws the vectors.
        site: where to note it; the model's root when `None`.
        step: the step.

    Returns:
        The trace with a 95 % interval; `None` where loss, gradient or a product are not finite.

    Raises:
        InputError: fewer than six products.
    """
    if products < 6:
        raise InputError("six products or more", str(products), "type: products=30")
    objective = Objective(model, loss_fn, batch, mode=mode)
    if not objective.at().finite:
        return None
    with curvature(objective) as operator:
        value, interval = _trace(operator.__matmul__, objective, products, torch.Generator().manual_seed(seed))
    if not abs(value) < float("inf"):
        return None
    where = site or Site("", "weight")
    return Reading(QUANTITY.name, where, step, value, QUANTITY.unit, objective.samples, interval=interval)


@torch.no_grad()
def _trace(
    times: Callable[[Tensor], Tensor], objective: Objective, products: int, generator: torch.Generator
) -> tuple[float, tuple[float, float]]:
    d, like = objective.dimension, objective.parameters[0].detach()
    if d <= products:
        exact = sum(float((times(row) @ row).double()) for row in torch.eye(d, dtype=like.dtype, device=like.device))
        return exact, (exact, exact)
    third = products // 3
    sketch = torch.stack([times(rademacher(d, generator, like)) for _ in range(third)], 1)
    basis = torch.linalg.qr(sketch).Q
    inside = sum(float(torch.dot(column.double(), times(column).double())) for column in basis.unbind(1))
    rest = []
    for _ in range(products - 2 * third):
        probe = rademacher(d, generator, like)
        probe = probe - basis @ (basis.T @ probe)
        rest.append(float(torch.dot(probe.double(), times(probe).double())))
    mean, (low, high) = over_probes(rest)
    return inside + mean, (inside + low, inside + high)
