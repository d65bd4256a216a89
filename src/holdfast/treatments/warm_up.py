"""`warm-up`: a recipe that raises the learning rate from near zero over the first steps."""

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

_START = 0.01
"""Of the full rate, at the first step."""

_STEPS = 500
"""For optimisers without a second moment: a few per cent of a run of 10,000 to 20,000 steps."""


@dataclass(frozen=True, slots=True, eq=False)
class WarmUp:
    """Lines that raise the learning rate linearly over the first steps.

    What it does:
        A recipe: it gives the lines for your script. The rate starts at a hundredth of its value and reaches it after
        `steps` optimiser steps; with Adam and its kin the default is 2 / (1 − β₂), the time that their second moment
        takes to settle.

    When it helps:
        When the first steps do the damage: activations jump, units saturate or die within tens of steps, Adam's
        second moment has seen too few gradients, a transformer normalises after the residual.

    When it is wrong:
        When the trouble comes later, or the full rate is too large in the long run: then it only comes later. Together
        with a scheduler that warms up already.

    Example:
        >>> print(WarmUp(steps=100).plan(nn.Linear(1, 1), None).source)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=100)
        optimizer.step()
        warm_up.step()  # after each optimizer.step()

    Args:
        steps: how many; `None` chooses from the optimiser.
        batch: not needed.

    References:
        Goyal et al., Accurate, large minibatch SGD, 2017, arXiv:1706.02677.
        Ma and Yarats, On the adequacy of untuned warmup for adaptive optimization, 2019, arXiv:1910.04209.
    """

    name = "warm-up"

    steps: Any = None
    batch: Batch | None = None

    def __post_init__(self) -> None:
        """Refuse what is no number of steps.

        Raises:
            InputError: it is not a whole number above 0.
        """
        if self.steps is not None and (type(self.steps) is not int or self.steps < 1):
            raise InputError("at least one step, a whole number", repr(self.steps), "give steps=500, say")

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Give the lines.

        Args:
            model: the model.
            optimizer: whose second moment sets the number of steps when none was given.
            sites: not needed: all rates are warmed up.

        Returns:
            A plan that only your script can follow.
        """
        steps = self._choose(optimizer) if self.steps is None else self.steps
        rate = "lr" if optimizer is None else f"lr {float(optimizer.param_groups[0]['lr']):.4g}"
        return Plan(
            self.name,
            f"- {rate} from the first step\n+ {rate} × 0.01 at the first step, rising to {rate} at step {steps}",
            "warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters="
            f"{steps})\noptimizer.step()\nwarm_up.step()  # after each optimizer.step()",
            model=model,
            rehearse_=None if optimizer is None else lambda: _rehearse(optimizer, steps),
            optimizer=optimizer,
        )

    @staticmethod
    def _choose(optimizer: Optimizer | None) -> int:
        betas = None if optimizer is None else optimizer.param_groups[0].get("betas")
        if betas is None or not 0 < float(betas[1]) < 1:
            return _STEPS
        return math.ceil(round(2 / (1 - float(betas[1])), 6))


def _rehearse(optimizer: Optimizer, steps: int) -> Callable[[], None]:
    """The rates as the scheduler would set them, put back after each step."""
    done = 0
    rates: list[Any] = []

    def before(*_: Any) -> None:
        factor = _START + (1 - _START) * min(done / steps, 1.0)
        rates[:] = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    def after(*_: Any) -> None:
        nonlocal done
        done += 1
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def stop() -> None:
        for handle in handles:
            handle.remove()

    return stop
