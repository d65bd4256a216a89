"""`decouple-decay`: Adam's weight decay taken out of the gradient, as in AdamW."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam, NAdam, Optimizer, RAdam

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.optimiser import check_owner
from holdfast.treatments.change import Batch, Change, planned
from holdfast.treatments.groups import group_of

_KEY = "decoupled_weight_decay"


@dataclass(frozen=True, slots=True, eq=False)
class DecoupleDecay:
    """Turns Adam into AdamW while it runs.

    What it does:
        Adam, NAdam and RAdam of torch add λ·w to the gradient, where the second moment divides it away again:
        weights with large gradients hardly decay. This sets `decoupled_weight_decay` in every group of the same
        optimiser, so that each step takes lr·λ·w off the weight itself, as AdamW does; moments and step counts stay,
        and a scheduler goes on with the same object. From the same state the next step equals AdamW's bit for bit.

    When it helps:
        When weights grow although decay is set, or when the best λ moves with every change of the learning rate.

    When it is wrong:
        The same λ means another strength afterwards: what is taken off is lr·λ of the weight per step, whatever the
        gradient. With λ = 1e-4, usual for Adam, next to nothing is left; AdamW's own default is 1e-2. Give `factor`
        to carry it over. A momentum already averaged holds the old decay for about 1/(1 − β₁) steps.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> optimizer = torch.optim.Adam(layer.parameters(), weight_decay=1e-4)
        >>> receipt = DecoupleDecay(factor=100.0).plan(layer, optimizer).apply()
        >>> print(*receipt.changes, sep="; ")
        optimiser group 0: coupled weight_decay 0.0001 → decoupled weight_decay 0.01
        >>> receipt.undo()
        >>> optimizer.param_groups[0]["weight_decay"], optimizer.param_groups[0]["decoupled_weight_decay"]
        (0.0001, False)

    Args:
        factor: by which `weight_decay` is multiplied, positive; 1 keeps it.
        batch: not needed: the computed function does not change; the receipt then says so with an error of 0.

    References:
        Loshchilov and Hutter, Decoupled weight decay regularization, 2019, arXiv:1711.05101.
    """

    name = "decouple-decay"

    factor: float = 1.0
    batch: Batch | None = None

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out the change.

        Args:
            model: the model.
            optimizer: the one that steps it: torch's Adam, NAdam or RAdam.
            sites: not needed: all groups change.

        Returns:
            The plan.

        Raises:
            InputError: the factor is not positive and finite.
            SurgeryError: there is no such optimiser, this version of torch cannot, or nothing decays with the gradient.
        """
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise InputError("a positive factor", repr(self.factor), "give factor=1.0, say")
        if optimizer is None:
            raise SurgeryError("an optimiser", "None", "give the optimiser that steps the model")
        check_owner(model, optimizer)
        _check(optimizer)
        factor, diff = self.factor, []
        coupled = [index for index, group in enumerate(optimizer.param_groups) if not group[_KEY]]
        for index in coupled:
            decay = float(optimizer.param_groups[index]["weight_decay"])
            diff += [f"- group {index}: gradient + {decay:.4g}·w", f"+ group {index}: w − lr·{decay * factor:.4g}·w"]
        source = [f"for group in [optimizer.param_groups[index] for index in {coupled}]:"]
        source += [f'    group["{_KEY}"] = True']
        if factor != 1.0:
            source += [f'    group["weight_decay"] *= {factor!r}']
        source += [f'optimizer.defaults["{_KEY}"] = True']

        def change() -> Change:
            return _decouple(optimizer, coupled, factor)

        return planned(
            self.name,
            model,
            change,
            diff="\n".join(diff),
            source="\n".join(source),
            batch=self.batch,
            optimizer=optimizer,
        )


def _check(optimizer: Optimizer) -> None:
    kind = type(optimizer).__name__
    if type(optimizer) not in (Adam, NAdam, RAdam):
        got = "an AdamW, which has it decoupled" if kind == "AdamW" else f"a {kind}"
        fix = "leave it as it is" if kind == "AdamW" else "build the optimiser anew: torch.optim.AdamW(...)"
        raise SurgeryError("torch's Adam, NAdam or RAdam, whose decay goes through the gradient", got, fix)
    if not all(_KEY in group for group in optimizer.param_groups):
        raise SurgeryError(
            f"a version of torch whose {kind} knows {_KEY}",
            "one whose groups have no such setting",
            "use a newer torch, or build the optimiser anew: torch.optim.AdamW(...)",
        )
    if not any(float(group["weight_decay"]) > 0 and not group[_KEY] for group in optimizer.param_groups):
        raise SurgeryError(
            "a group whose weight_decay above 0 goes through the gradient",
            f"none among the {len(optimizer.param_groups)} groups of the {kind}",
            "nothing needs to be decoupled: leave it as it is",
        )


def _decouple(optimizer: Optimizer, coupled: Sequence[int], factor: float) -> Change:
    """Set the keys, all or nothing; undo divides where the decay was moved since."""
    kept: list[tuple[list[Tensor], Any, float]] = []
    default = optimizer.defaults.get(_KEY, False)
    lines = []

    def undo() -> None:
        groups = [group_of(optimizer, params) for params, _, _ in kept]
        for group, (_, before, after) in zip(groups, kept, strict=True):
            if not group[_KEY]:
                continue  # a checkpoint of before the treatment was loaded since
            group[_KEY] = False
            present = float(group["weight_decay"])
            if present != after:
                _set(group, present / factor)
            elif isinstance(group["weight_decay"], Tensor):
                _set(group, float(before))
            else:
                group["weight_decay"] = before
        optimizer.defaults[_KEY] = default

    try:
        for index in coupled:
            group = optimizer.param_groups[index]
            before = group["weight_decay"]
            before = before.clone() if isinstance(before, Tensor) else before
            group[_KEY] = True
            kept.append((group["params"], before, float(before)))
            _set(group, float(before) * factor)
            after = float(group["weight_decay"])
            kept[-1] = (group["params"], before, after)
            lines.append(
                f"optimiser group {index}: coupled weight_decay {float(before):.4g} → "
                f"decoupled weight_decay {after:.4g}"
            )
        optimizer.defaults[_KEY] = True
    except BaseException:
        undo()
        raise
    return Change(tuple(lines), undo)


def _set(group: dict[str, Any], value: float) -> None:
    """Set the decay; a tensor in place, and a whole number stays one where it may."""
    if isinstance(group["weight_decay"], Tensor):
        group["weight_decay"].fill_(value)
    elif group["weight_decay"] != value:
        group["weight_decay"] = value
