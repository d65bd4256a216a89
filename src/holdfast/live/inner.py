"""`inner_model`: the user's own module inside torch's wrappers; `compiled_model`: what runs its compiled code."""

from __future__ import annotations

import sys

from torch import nn


def inner_model(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile(model)`, `DistributedDataParallel(model)` and `DataParallel(model)`.

    Wrappers change the names of the layers, and a call through `DistributedDataParallel` talks to the other ranks.

    Args:
        model: perhaps wrapped, more than once.

    Returns:
        The innermost module, which is `model` itself when nothing wraps it.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> inner_model(nn.DataParallel(layer)) is layer
        True
    """
    while True:
        inner = _wrapped(model)
        if inner is None:
            return model
        model = inner


def compiled_model(model: nn.Module) -> nn.Module:
    """What runs a model's compiled code and talks to no other rank.

    Args:
        model: perhaps wrapped.

    Returns:
        `torch.compile(model)` where it wraps the user's own module directly, else the innermost module.
    """
    outer = model
    while (inner := _wrapped(model)) is not None:
        outer, model = model, inner
    return model if isinstance(outer, nn.DataParallel | nn.parallel.DistributedDataParallel) else outer


def _wrapped(model: nn.Module) -> nn.Module | None:
    # A wrapper whose module was never imported cannot be at hand; importing it would cost a second.
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", None)
    if compiled is not None and isinstance(model, compiled):
        return model._modules["_orig_mod"]
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model._modules["module"]
    return None
