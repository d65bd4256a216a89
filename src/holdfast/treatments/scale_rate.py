"""`scale-rate`: the learning rate of parameter groups multiplied by a factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.optimiser import check_owner
from holdfast.treatments.change import Batch, Change, planned
from holdfast.treatments.groups import group_of, schedulers
from holdfast.treatments.places import named

_RATES = ("initial_lr", "max_lr", "min_lr", "swa_lr", "lr")
"""What torch's schedulers keep in a group, the rate of now last; all else that they read of it is no rate."""

_LISTS = ("base_lrs", "max_lrs", "min_lrs")
"""What they keep themselves, with one entry for each group."""

_FLOORS = ("eta_min", "default_min_lr")
"""What they keep themselves, one for all groups."""

_KNOWN = (
    *(ChainedScheduler, ConstantLR, CosineAnnealingLR, CosineAnnealingWarmRestarts, CyclicLR, ExponentialLR),
    *(LambdaLR, LinearLR, MultiplicativeLR, MultiStepLR, OneCycleLR, PolynomialLR, ReduceLROnPlateau, SequentialLR),
    *(StepLR, SWALR),
)
"""Those whose later rates are all multiplied by what multiplies these; a subclass may compute them otherwise."""


@dataclass(frozen=True, slots=True, eq=False)
class ScaleRate:
    """Multiplies the learning rate of the optimiser's groups.

    What it does:
        `lr` and what schedulers note beside it (`initial_lr`, `max_lr`, `min_lr`, `swa_lr`) of each group that holds a
        parameter of the named modules (of every group when none is named) are multiplied by `factor`. So are, when it
        is given, the rates that the scheduler and those it chains keep themselves (`base_lrs`, `max_lrs`, `min_lrs`,
        `eta_min`), so that every later rate is `factor` times what it would have been. The model is left alone.

    When it helps:
        When updates are too large for the weights (update ratio far above 1e-3, exploding or oscillating loss):
        a factor below 1. When they are far too small: a factor above 1. It is the cheapest rival of every other
        treatment, which must beat it to be worth its trouble.

    When it is wrong:
        When one layer is the trouble and the group holds all of them: the healthy ones slow down with it. When a
        scheduler computes rates from its own base rates and is not given here: it overwrites the change. One that is
        given tells the old rate (`get_last_lr()`) until its next step.

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
            SurgeryError: there is no optimiser, it steps none of the named modules, or the scheduler is none of torch's
                own or has one floor for groups of which only some are scaled.
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
        _check(self.scheduler, whole=len(chosen) == len(optimizer.param_groups))
        factor, diff = self.factor, []
        for index in chosen:
            rate = float(optimizer.param_groups[index]["lr"])
            diff += [f"- group {index}: lr {rate:.4g}", f"+ group {index}: lr {rate * factor:.4g}"]
        if self.scheduler is None and any("initial_lr" in optimizer.param_groups[index] for index in chosen):
            diff.append("  a scheduler noted its own base rates and may overwrite this: give scheduler= to scale them")
        source = _source(optimizer, chosen, factor, self.scheduler)

        def change() -> Change:
            return _scale(optimizer, chosen, factor, self.scheduler)

        return planned(
            self.name,
            model,
            change,
            diff="\n".join(diff),
            source=source,
            batch=self.batch,
            optimizer=optimizer,
        )


def _check(scheduler: LRScheduler | None, *, whole: bool) -> None:
    """Refuse a scheduler whose rates cannot be scaled from outside."""
    for path, each in schedulers(scheduler):
        if type(each) not in _KNOWN:
            raise SurgeryError(
                "a scheduler of torch's own, of which is known what its rates are computed from",
                f"a {type(each).__name__}",
                "build the scheduler from rates that you scale yourself, or express it as a LambdaLR",
            )
        floor = getattr(each, "eta_min", 0.0)
        if floor and not whole:
            raise SurgeryError(
                "a scheduler whose lowest rate can be scaled for the chosen groups alone",
                f"a {type(each).__name__} with {path}.eta_min = {floor:g} for all groups",
                "scale all groups: name no sites",
            )


def _own(scheduler: LRScheduler | None) -> list[tuple[str, LRScheduler, str]]:
    """What a scheduler and those that it chains keep of rates: the way to each, whose it is, and its name."""
    return [
        (path, each, key)
        for path, each in schedulers(scheduler)
        for key in (*_LISTS, *_FLOORS)
        if getattr(each, key, None) is not None
    ]


def _scale(optimizer: Optimizer, chosen: Sequence[int], factor: float, scheduler: LRScheduler | None) -> Change:
    """Scale the rates; undo gives back the very values, or, where a scheduler moved them since, divides."""
    groups: list[tuple[dict[str, Any], dict[str, float], dict[str, float]]] = []
    kept: list[tuple[LRScheduler, str, Any, Any]] = []

    def undo() -> None:
        present = [group_of(optimizer, group["params"]) for group, _, _ in groups]
        for now, (then, before, after) in zip(present, groups, strict=True):
            steady = next(key for key in _RATES if key in before and key in now)
            if now is not then and float(now[steady]) == before[steady]:
                continue  # a checkpoint of before the treatment was loaded since
            for key in (key for key in before if key in now):
                rate = float(now[key])
                _set(now, key, before[key] if rate == after[key] else rate / factor)
        for holder, key, own_before, own_after in kept:
            own = getattr(holder, key)
            if own != own_before:
                setattr(holder, key, own_before if own == own_after else _times(own, chosen, 1 / factor))

    try:
        for index in chosen:
            group = optimizer.param_groups[index]
            before = {key: float(group[key]) for key in _RATES if key in group}
            after = dict(before)
            groups.append((group, before, after))
            for key in before:
                _set(group, key, before[key] * factor)
                after[key] = float(group[key])
        for _, holder, key in _own(scheduler):
            kept.append((holder, key, getattr(holder, key), _times(getattr(holder, key), chosen, factor)))
            setattr(holder, key, kept[-1][-1])
    except BaseException:
        undo()
        raise
    lines = (
        f"optimiser group {index}: lr {before['lr']:.4g} → {after['lr']:.4g}"
        for index, (_, before, after) in zip(chosen, groups, strict=True)
    )
    return Change(tuple(lines), undo)


def _times(rates: Any, chosen: Sequence[int], factor: float) -> Any:
    """A new list, in which the chosen entries are scaled, or one rate scaled."""
    if isinstance(rates, list):
        return [rate * factor if index in chosen else rate for index, rate in enumerate(rates)]
    return rates * factor


def _source(optimizer: Optimizer, chosen: Sequence[int], factor: float, scheduler: LRScheduler | None) -> str:
    """Lines for a script that do the same."""
    keys = [key for key in _RATES if any(key in optimizer.param_groups[index] for index in chosen)]
    lines = [f"for group in [optimizer.param_groups[index] for index in {list(chosen)}]:"]
    lines += [f"    for key in {keys}:", "        if key in group:", f"            group[key] *= {factor!r}"]
    if keys == ["lr"]:
        lines[1:] = [f'    group["lr"] *= {factor!r}']
    for path, _, key in _own(scheduler):
        scaled = f"[rate * {factor!r} if index in {list(chosen)} else rate for index, rate in enumerate({path}.{key})]"
        lines.append(f"{path}.{key} = {scaled}" if key in _LISTS else f"{path}.{key} *= {factor!r}")
    return "\n".join(lines)


def _set(holder: Any, key: Any, value: float) -> None:
    """Set one rate; a tensor in place, because a captured optimiser holds on to it."""
    if isinstance(holder[key], Tensor):
        holder[key].fill_(value)
    else:
        holder[key] = value
