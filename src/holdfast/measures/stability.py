"""Whether a model and its optimiser are within the optimiser's stability threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError
from holdfast.core.reading import Reading, Table
from holdfast.core.site import Site
from holdfast.live.curvature import curvature
from holdfast.live.moment import Moment
from holdfast.live.objective import Objective
from holdfast.live.replay import Mode
from holdfast.measures.sharpness import PRODUCTS, TOLERANCE, WATCHED_PRODUCTS, largest
from holdfast.measures.stability_ratio import stability_ratio
from holdfast.measures.stability_threshold import stability_threshold


@dataclass(frozen=True, slots=True)
class Stability:
    """The largest curvature that the optimiser feels, against what it bears.

    Args:
        sharpness: largest eigenvalue of the Hessian; under Adam, several rates or weight decay, of the Hessian with
            the optimiser's preconditioner and decay.
        threshold: at which the optimiser becomes unstable; `None` where it is not known.
        ratio: sharpness over threshold; `None` likewise.
        formula: the threshold's, or why there is none.
    """

    sharpness: Reading
    threshold: float | None
    ratio: Reading | None
    formula: str


def stability(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batch: Any,
    optimizer: Optimizer,
    *,
    mode: Mode = "as it was",
    products: int = PRODUCTS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    site: Site | None = None,
    step: int = 0,
) -> Stability | None:
    """Largest curvature against the optimiser's own threshold.

    Args:
        model: the model, which stays as it is.
        loss_fn: `(output, targets)` → a scalar.
        batch: `(inputs, targets)`; inputs as the model takes them.
        optimizer: of the model; stays as it is. SGD, Adam and AdamW of torch have a known threshold.
        mode: how normalisers and dropout run: `"train"`, `"eval"`, or as the modules' flags say.
        products: Hessian products at most.
        tolerance: of the eigenvalue, by its residual, relative.
        seed: of the private generator that draws the first vector.
        site: where to note it; the model's root when `None`.
        step: the step.

    Returns:
        What was found, with the reason where it is inconclusive; `None` where loss or gradient are not finite.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])             # H = diag(4, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.4)
        >>> found = stability(layer, torch.nn.functional.mse_loss, (x, torch.zeros(2, 1)), optimizer)
        >>> found.threshold, round(found.ratio.value, 4), found.formula
        (5.0, 0.8, 'gradient descent: 2 / η')
    """
    objective = Objective(model, loss_fn, batch, mode=mode)
    if not objective.at().finite:
        return None
    known = stability_threshold(optimizer, objective.parameters)
    with curvature(objective) as operator:
        times = operator.__matmul__ if isinstance(known, str) else known.applied(operator.__matmul__)
        found = largest(times, objective, products, tolerance, seed, site or Site("", "weight"), step)
    if found is None:
        return None
    if isinstance(known, str):
        return Stability(found, None, None, known)
    return Stability(found, known.value, stability_ratio(found, known.value), known.formula)


def take(moment: Moment) -> list[Reading | Table]:
    """Stability ratio at one step of training.

    Args:
        moment: with a batch, its loss and the optimiser.

    Returns:
        The reading; none where the loss is not finite.

    Raises:
        InputError: the optimiser's threshold is not known; says why.
    """
    if moment.batch is None or moment.loss_fn is None or moment.optimizer is None:
        return []
    found = stability(
        moment.model,
        moment.loss_fn,
        moment.batch,
        moment.optimizer,
        products=WATCHED_PRODUCTS,
        site=Site("", "weight", stream=moment.stream),
        step=moment.step,
    )
    if found is None:
        return []
    if found.ratio is None:
        raise InputError(
            "an optimiser whose stability threshold is known",
            f"{type(moment.optimizer).__name__}: {found.formula}",
            "type: measures=['sharpness'], which needs no optimiser",
        )
    return [found.ratio]
