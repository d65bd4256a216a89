"""`clip`: a recipe that bounds the gradient's norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.treatments.change import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Lines that bound the norm of the gradient before each step.

    What it does:
        A recipe: it gives the line for your script, between `backward()` and `step()`. The gradient of all
        parameters together is scaled down to `max_norm` when it is longer, and keeps its direction.

    When it helps:
        When rare batches give gradients many times the usual and throw the weights away: recurrent networks,
        attention in its first steps, outliers in the data.

    When it is wrong:
        When it acts at most steps: then it is a learning rate in disguise; use `scale-rate`. With `GradScaler`,
        before `scaler.unscale_(optimizer)`. It hides a bad initialisation or an unscaled input.

    Example:
        >>> print(Clip(max_norm=1.0).plan(nn.Linear(1, 1), None).source)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()

    Args:
        max_norm: the longest gradient that passes, L2; about twice its median in healthy steps is a good start.
        batch: not needed.

    References:
        Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, 2013, arXiv:1211.5063.
    """

    name = "clip"

    max_norm: Any = 1.0
    batch: Batch | None = None

    def __post_init__(self) -> None:
        """Refuse what is no length.

        Raises:
            InputError: it is not a number, or not positive and finite.
        """
        known = type(self.max_norm) in (int, float)
        if not (known and math.isfinite(self.max_norm) and self.max_norm > 0):
            raise InputError("a positive max_norm", repr(self.max_norm), "give max_norm=1.0, say")

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Give the lines.

        Args:
            model: the model.
            optimizer: not needed.
            sites: not needed: the whole gradient is clipped.

        Returns:
            A plan that only your script can follow.
        """
        line = f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={self.max_norm!r})"
        return Plan(
            self.name,
            f"- loss.backward(); optimizer.step()\n+ loss.backward(); {line}; optimizer.step()",
            f"loss.backward()\n{line}\noptimizer.step()",
            model=model,
            rehearse_=None if optimizer is None else lambda: self._rehearse(model, optimizer),
            optimizer=optimizer,
        )

    def _rehearse(self, model: nn.Module, optimizer: Optimizer) -> Callable[[], None]:
        def before(*_: Any) -> None:
            nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)

        return optimizer.register_step_pre_hook(before).remove
