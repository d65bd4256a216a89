"""A fixed probe cut out of the first training batch, for who keeps no batch out of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from holdfast.core.errors import InputError
from holdfast.live.replay import Call


def samples_wanted(probe: Any) -> int | None:
    """How many samples a `probe=` asks to be cut from the first training batch.

    Args:
        probe: as given to the watch.

    Returns:
        The number, `None` when the probe is a batch or there is none.

    Raises:
        InputError: it is negative.
    """
    if not isinstance(probe, int) or isinstance(probe, bool):
        return None
    if probe < 0:
        raise InputError("a number of samples ≥ 0", f"probe={probe}", "type: probe=64")
    return probe


def first_samples(call: Call, count: int) -> Call | str:
    """The first samples of a batch, as a call of their own, on copies.

    Axis 0 is taken for that of the samples: every tensor among the arguments that has axes must have the same size
    there.

    Args:
        call: of the model, with a batch.
        count: how many samples; fewer when the batch has fewer.

    Returns:
        The call, or a sentence that says why the batch cannot be cut.

    Example:
        >>> import torch
        >>> from holdfast.live.replay import record_call
        >>> cut = first_samples(record_call((torch.zeros(8, 3), torch.tensor(2.0)), {}), 5)
        >>> [tuple(each.shape) for each in cut.args]
        [(5, 3), ()]
    """
    arguments = (call.args, dict(call.kwargs))
    sizes = {leaf.shape[0] for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.ndim}
    if not sizes:
        return "the model is not called with tensors"
    if len(sizes) > 1:
        found = ", ".join(map(str, sorted(sizes)))
        return f"the model's arguments do not all have the samples on axis 0 (sizes {found})"
    if sizes == {0}:
        return "the first batch is empty"

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        own = leaf.detach()
        return (own[:count] if own.ndim else own).clone()

    args, kwargs = tree_map(cut, arguments)
    return replace(call, args=args, kwargs=kwargs, versions=())
