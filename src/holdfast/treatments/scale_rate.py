"""`scale-rate`: the learning rate of parameter groups multiplied by a factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.optimiser import check_owner
from holdfast.treatments.change import Batch, Change, planned
from holdfast.treatments.places import named


@dataclass(frozen=True, slots=True, eq=False)
class ScaleRate:
    """Multiplies the learning rate of the optimiser's groups.

    What it does:
        `lr` and, where a scheduler noted it, `initial_lr` of each group that holds a parameter of the named modules
        (of every group when none is named) are multiplied by `factor`; the scheduler's own base rates too when it is
        given. The model is left alone.

    When it helps:
        When updates are too large for the weights (update ratio far above 1e-3, exploding or oscillating loss):
        a factor below 1. When they are far too small: a factor above 1. It is the cheapest rival of every other
        treatment, which must beat it to be worth its trouble.

    When it is wrong:
        When one layer is the trouble and the group holds all of them: the healthy ones slow down with it. When a
        scheduler computes rates from its own base rates and is not given here: it overwrites the change.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        >>> receipt = ScaleRate(factor=0.1).plan(layer, optimizer).apply()
        >>> optimizer.param_groups[0]["lr"]
        0.05
        >>> receipt.undo()
        >>> optimizer.param_groups[0]["lr"]
        0.5

    Args:
        factor: by which rates are multiplied, positive; a third by default.
        scheduler: the one that steps the optimiser, if any.
        batch: not needed: the computed function does not change; the receipt then says so with an error of 0.

    References:
        Bengio, Practical recommendations for gradient-based training of deep architectures, 2012, arXiv:1206.5533.
    """

    name = "scale-rate"

    factor: float = 1 / 3
    scheduler: LRScheduler | None = None
    batch: Batch | None = None

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out the new rates.

        Args:
            model: the model.
            optimizer: the one that steps it.
            sites: whose groups; all when none is named.

        Returns:
            The plan.

        Raises:
            InputError: the factor is not positive and finite.
            SurgeryError: there is no optimiser, or it steps none of the named modules.
        """
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise InputError("a positive factor", repr(self.factor), "give factor=0.3, say")
        if optimizer is None:
            raise SurgeryError("an optimiser", "None", "give the optimiser that steps the model")
        check_owner(model, optimizer)
        modules = [module for _, module in named(model, sites)] or [model]
        wanted = {id(parameter) for module in modules for parameter in module.parameters()}
        chosen = [
            index
            for index, group in enumerate(optimizer.param_groups)
            if any(id(parameter) in wanted for parameter in group["params"])
        ]
        if not chosen:
            raise SurgeryError(
                "modules whose parameters the optimiser steps",
                ", ".join(site.module for site in sites) + ", which it does not",
                "name layers with parameters of their own",
            )
        factor, diff = self.factor, []
        for index in chosen:
            rate = float(optimizer.param_groups[index]["lr"])
            diff += [f"- group {index}: lr {rate:.4g}", f"+ group {index}: lr {rate * factor:.4g}"]
        if self.scheduler is None and any("initial_lr" in optimizer.param_groups[index] for index in chosen):
            diff.append("  a scheduler noted its own base rates and may overwrite this: give scheduler= to scale them")
        source = [f"for group in [optimizer.param_groups[index] for index in {chosen}]:"]
        source += [f'    group["lr"] *= {factor!r}']
        if self.scheduler is not None:
            source.append(f"scheduler.base_lrs = [rate * {factor!r} for rate in scheduler.base_lrs]")

        def change() -> Change:
            return _scale(optimizer, chosen, factor, self.scheduler)

        return planned(
            self.name,
            model,
            change,
            diff="\n".join(diff),
            source="\n".join(source),
            batch=self.batch,
            optimizer=optimizer,
        )


def _scale(optimizer: Optimizer, chosen: Sequence[int], factor: float, scheduler: LRScheduler | None) -> Change:
    """Scale the rates; undo gives back the very values, or, where a scheduler moved them since, divides."""
    places: list[tuple[Any, Any]] = []
    for index in chosen:
        group = optimizer.param_groups[index]
        places += [(group, key) for key in ("lr", "initial_lr") if key in group]
    if scheduler is not None:
        places += [(scheduler.base_lrs, index) for index in chosen if hasattr(scheduler, "base_lrs")]
    rates = [float(optimizer.param_groups[index]["lr"]) for index in chosen]
    kept: list[tuple[Any, Any, float, float]] = []

    def undo() -> None:
        for holder, key, before, after in kept:
            present = float(holder[key])
            _set(holder, key, before if present == after else present / factor)

    try:
        for holder, key in places:
            before = float(holder[key])
            _set(holder, key, before * factor)
            kept.append((holder, key, before, float(holder[key])))
    except BaseException:
        undo()
        raise
    lines = (
        f"optimiser group {index}: lr {rate:.4g} → {float(optimizer.param_groups[index]['lr']):.4g}"
        for index, rate in zip(chosen, rates, strict=True)
    )
    return Change(tuple(lines), undo)


def _set(holder: Any, key: Any, value: float) -> None:
    """Set one rate; a tensor in place, because a captured optimiser holds on to it."""
    if isinstance(holder[key], Tensor):
        holder[key].fill_(value)
    else:
        holder[key] = value
