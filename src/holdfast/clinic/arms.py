"""One arm of a proof: training from the kept state, timed, and judged on batches that are not trained on."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.clinic.batches import Batch, LossFn, size_of
from holdfast.core.errors import InputError

Metric = Callable[[Any, Any], float | Tensor]
"""`(output, targets)` → one number."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one arm came to under one seed.

    Args:
        losses: of the training steps; it ends early where one was not finite.
        eval_loss: mean over the samples of the eval batches, in eval mode; NaN when the training diverged.
        metric: the same of the metric; `None` without one.
        seconds: median of a training step's wall-clock time.
    """

    losses: tuple[float, ...]
    eval_loss: float
    metric: float | None
    seconds: float

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""
        return not math.isfinite(self.eval_loss)


def seed_all(seed: int) -> None:
    """Seed every global generator.

    Args:
        seed: of torch (all devices), Python's `random` and NumPy's global generator where it is in use.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(seed % 2**32)


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call a model as a batch's inputs ask: a tuple or list is positional, a dictionary keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def train_step(
    model: nn.Module, optimizer: Optimizer, batch: Batch, loss_fn: LossFn, *, finite_only: bool = True
) -> float:
    """One step of training.

    Args:
        model: in its mode.
        optimizer: of it.
        batch: `(inputs, targets)`.
        loss_fn: see `LossFn`.
        finite_only: whether no step is made where the loss is not finite.

    Returns:
        The loss before the step.

    Raises:
        InputError: the loss is not one number that the parameters move.
    """
    inputs, targets = batch
    loss = loss_fn(call_model(model, inputs), targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise InputError(
            "a loss_fn(output, targets) that gives one number which the parameters move",
            f"{loss.numel()} numbers" if isinstance(loss, Tensor) else f"a {type(loss).__name__}",
            "type: loss_fn=torch.nn.functional.cross_entropy",
        )
    value = float(loss.detach())
    if math.isfinite(value) or not finite_only:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return value


def trial(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Batch],
    loss_fn: LossFn,
    eval_batches: Sequence[Batch],
    metric: Metric | None,
    on_step: Callable[[], None],
) -> Trial:
    """Train on the batches, then judge.

    Args:
        model: in the state from which to start; left in the state to which it came.
        optimizer: of it.
        batches: one a step.
        loss_fn: see `LossFn`.
        eval_batches: to judge on.
        metric: to judge by, beside the loss.
        on_step: told of every step.

    Returns:
        What came of it.
    """
    losses, seconds = [], []
    for batch in batches:
        begin = time.perf_counter()
        losses.append(train_step(model, optimizer, batch, loss_fn))
        seconds.append(time.perf_counter() - begin)
        on_step()
        if not math.isfinite(losses[-1]):
            break
    middle = sorted(seconds)[len(seconds) // 2]
    if not math.isfinite(losses[-1]):
        return Trial(tuple(losses), math.nan, None if metric is None else math.nan, middle)
    return Trial(tuple(losses), *judge(model, eval_batches, loss_fn, metric), middle)


def judge(
    model: nn.Module, batches: Sequence[Batch], loss_fn: LossFn, metric: Metric | None
) -> tuple[float, float | None]:
    """Loss and metric in eval mode, means over samples.

    Args:
        model: its modes are as before afterwards.
        batches: `(inputs, targets)`.
        loss_fn: see `LossFn`.
        metric: or `None`.

    Returns:
        `(loss, metric)`; both NaN where the loss is not finite.

    Raises:
        InputError: the metric is not one finite number although the loss is.
    """
    modes = [(module, module.training) for module in model.modules()]
    total = measured = 0.0
    samples = 0
    try:
        model.eval()
        with torch.no_grad():
            for inputs, targets in batches:
                output = call_model(model, inputs)
                n = size_of((inputs, targets))
                loss = float(loss_fn(output, targets))
                if not math.isfinite(loss):
                    return math.nan, None if metric is None else math.nan
                total, samples = total + n * loss, samples + n
                if metric is not None:
                    measured += n * _measure(metric, output, targets)
    finally:
        for module, mode in modes:
            module.training = mode
    return total / samples, None if metric is None else measured / samples


def _measure(metric: Metric, output: Any, targets: Any) -> float:
    found = metric(output, targets)
    if isinstance(found, Tensor) and found.numel() != 1:
        raise InputError(
            "a metric(output, targets) that gives one number", f"{found.numel()} numbers", "take their mean in it"
        )
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        raise InputError(
            "a metric(output, targets) that gives one number",
            f"a {type(found).__name__}",
            "type: metric=lambda output, targets: (output.argmax(1) == targets).double().mean()",
        ) from error
    if not math.isfinite(value):
        raise InputError(
            "a metric that is a finite number on every eval batch",
            f"{value} on one whose loss is finite",
            "mend the metric, or leave out eval batches on which it is not defined",
        )
    return value
