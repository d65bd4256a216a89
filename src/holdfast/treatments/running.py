"""Running statistics of normalisers: which they are, and those that one batch leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from holdfast.treatments.change import Batch, call_of, rerun


def running(norm: nn.Module) -> list[Tensor]:
    """The running mean and variance, where a normaliser keeps them.

    Example:
        >>> running(nn.BatchNorm1d(1)), running(nn.LayerNorm(1))
        ([tensor([0.]), tensor([1.])], [])
    """
    if not isinstance(norm, _NormBase):
        return []
    return [buffer for buffer in (norm.running_mean, norm.running_var) if buffer is not None]


def estimate(model: nn.Module, batch: Batch, norms: Sequence[nn.Module]) -> None:
    """Give normalisers the running statistics that the batch alone leaves in train mode; all others keep theirs.

    Args:
        model: which holds them.
        batch: what the model is called with.
        norms: whose buffers are written; those that do not run keep theirs.
    """
    found: dict[nn.Module, list[Tensor]] = {}

    def keep(norm: nn.Module, args: Any, output: Any) -> None:
        found[norm] = [buffer.clone() for buffer in running(norm)]

    momenta = [(norm, norm.momentum) for norm in norms]
    handles = [norm.register_forward_hook(keep) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1.0  # type: ignore[assignment]
        rerun(model, call_of(batch), "train")
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for norm, values in found.items():
            for buffer, value in zip(running(norm), values, strict=True):
                buffer.copy_(value)


def estimating(norms: Sequence[str], arguments: str) -> list[str]:
    """The same for a script.

    Args:
        norms: expressions that lead to the normalisers.
        arguments: from `called`.

    Returns:
        The lines.
    """
    return [
        "import copy",
        "twin = copy.deepcopy(model).train()",
        f"pairs = {{old: new for old, new in zip(model.modules(), twin.modules()) if old in ({', '.join(norms)},)}}",
        "for norm in pairs.values():",
        "    norm.momentum = 1.0  # the statistics of one batch",
        "with torch.no_grad():",
        f"    twin({arguments})",
        "    for old, new in pairs.items():",
        "        old.running_mean.copy_(new.running_mean)",
        "        old.running_var.copy_(new.running_var)",
    ]


def called(batch: Any) -> str:
    """How a script hands a batch to a model.

    Example:
        >>> called(torch.zeros(1)), called((1, 2)), called({"x": 1})
        ('batch', '*batch', '**batch')
    """
    return "*batch" if isinstance(batch, tuple) else "**batch" if isinstance(batch, Mapping) else "batch"
