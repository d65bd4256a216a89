"""`convert`: the normalisers of a model exchanged in one line."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError
from holdfast.core.site import Site
from holdfast.core.treatment import Receipt
from holdfast.treatments import SwapNorm


def convert(
    model: nn.Module,
    to: Any = "group",
    *,
    optimizer: Optimizer | None = None,
    batch: Any = None,
    sites: Sequence[str] | str | None = None,
) -> Receipt:
    """Exchange a model's normalisers for those of another kind, in place.

    The treatment `swap-norm`, applied: γ and β stay the same parameters, and the optimiser is mended in place. With a
    batch they are matched, so that every channel keeps its mean and SD on it; see `holdfast explain swap-norm`.

    Args:
        model: the model; changed.
        to: `"batch"`, `"ghost"`, `"group"`, `"instance"`, `"layer"` or `"rms"`.
        optimizer: that steps it, if there is one yet.
        batch: what the model is called with: a tensor, a tuple of positional or a dict of keyword arguments.
        sites: which normalisers, as shell patterns over module paths (`"encoder.*"`); all when `None`.

    Returns:
        The receipt: what changed, the error in eval and in train mode (with a batch), keys of the state_dict that are
        gone, and `undo()`.

    Raises:
        InputError: the kind is unknown, no module has such a path, or the model does not run on the batch.
        SurgeryError: no normaliser can be exchanged, or the model or the optimiser cannot be operated on.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
        >>> receipt = convert(model, "group")
        >>> model[1].num_groups
        4
        >>> receipt.undo()
        >>> type(model[1]).__name__
        'BatchNorm2d'
    """
    treatment = SwapNorm(to, batch)
    plan = treatment.plan(model, optimizer, [] if sites is None else _named(model, sites))
    return plan.apply(model, optimizer)


def _named(model: nn.Module, sites: Sequence[str] | str) -> list[Site]:
    """The leaves whose paths match."""
    patterns = [sites] if isinstance(sites, str) else list(sites)
    leaves = [path for path, module in model.named_modules() if not module._modules]
    found = [path for path in leaves if any(fnmatchcase(path, pattern) for pattern in patterns)]
    if not found:
        raise InputError(
            "sites of this model, as shell patterns over module paths",
            f"{patterns!r}, which match none of {len(leaves)} layers",
            "list its modules with: [name for name, _ in model.named_modules()]",
        )
    return [Site(path, "output") for path in found]
