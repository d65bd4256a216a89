"""What is known about the processes that train a model together, asked without talking to any of them."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from holdfast.live.inner import inner_model


def this_rank() -> int:
    """Number of this process among those that train together, from 0.

    From `torch.distributed` where a process group was made, else from `RANK` as launchers set it.

    Example:
        >>> this_rank()
        0
    """
    return dist.get_rank() if distributed() else _from_environment("RANK", 0)


def world_size() -> int:
    """How many processes train together; 1 for one alone."""
    return dist.get_world_size() if distributed() else max(1, _from_environment("WORLD_SIZE", 1))


def distributed() -> bool:
    """Whether a process group was made."""
    return dist.is_available() and dist.is_initialized()


def first_come(key: str, value: str) -> str:
    """What the first of the ranks to ask with a key proposed; nobody waits for anybody.

    Args:
        key: the same on all ranks.
        value: this rank's proposal.

    Returns:
        The first one's; the own one where there is no process group or its store cannot do it.
    """
    if not distributed():
        return value
    try:
        return store().compare_set(f"holdfast/{key}", "", value).decode()
    except Exception:  # stores differ in what they offer
        return value


def store() -> Any:
    """The key-value store in which the ranks of the process group met."""
    return dist.distributed_c10d._get_default_store()  # torch has no public name for it


def _from_environment(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else otherwise


def talks(model: nn.Module) -> bool:
    """Whether a forward pass of the model inside its wrappers talks to the other ranks.

    Such a pass can be repeated only by all of them together. Sharded parameters are gathered and SyncBatchNorm joins
    statistics; what else a forward of the user's own may send is not known.

    Args:
        model: perhaps wrapped; `DistributedDataParallel` itself does not count, because replays go past it.

    Example:
        >>> talks(nn.Linear(1, 1))
        False
    """
    if world_size() < 2:
        return False
    inner = inner_model(model)
    wrapped = _types("torch.distributed.fsdp", "FullyShardedDataParallel")
    return any(
        isinstance(module, (nn.SyncBatchNorm, *wrapped)) or any(map(is_sharded, module._parameters.values()))
        for module in inner.modules()
    )


def is_sharded(tensor: Tensor | None) -> bool:
    """Whether a tensor is a `DTensor`, of which this rank holds a part."""
    return tensor is not None and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a distributed tensor, any other tensor itself: a norm of the whole would be a collective.

    Args:
        tensor: any; the part of a sharded one may be empty.

    Returns:
        A plain tensor.
    """
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def copies(tensor: Tensor) -> int:
    """How many of the ranks hold each element of a tensor: all of them, or fewer when it is sharded.

    Squares summed over all ranks count each element so many times.

    Args:
        tensor: a parameter.

    Example:
        >>> copies(nn.Linear(1, 1).weight)
        1
    """
    if not is_sharded(tensor):
        return world_size()
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return math.prod(mesh.size(axis) for axis, placement in enumerate(placements) if placement.is_replicate())


def averaged_over(model: nn.Module) -> float:
    """What the ranks' parameter gradients are divided by when they are summed.

    The loss that the parameters follow is the sum of the ranks' losses over this figure; the gradient at a layer's
    output, which each rank computes from its own loss alone, is too large by it.

    Args:
        model: as it is called in training, in its wrappers.

    Returns:
        The number of ranks that a wrapper averages over; 1 where none does.
    """
    if not distributed():
        return 1.0
    inner = inner_model(model)
    while model is not inner:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            return float(model.process_group.size())
        model = next(model.children())
    shards = _types("torch.distributed.fsdp", "FSDPModule")
    for module in inner.modules():
        if isinstance(module, shards):
            found = _divided_by(module)
            if found is not None:
                return found
    return 1.0


def _divided_by(module: Any) -> float | None:
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
    for group in groups:
        if group is None:  # it has no parameters of its own
            continue
        if group.gradient_divide_factor is not None:
            return float(group.gradient_divide_factor)
        info = group.mesh_info
        axes = (getattr(info, "shard_mesh_dim", None), getattr(info, "replicate_mesh_dim", None))
        return float(math.prod(info.mesh.size(axis) for axis in axes if axis is not None))
    return None


def reshard(model: nn.Module) -> None:
    """Let go of parameters that a forward pass without a backward has gathered; talks to nobody.

    The outermost sharded module keeps what it gathered for the backward; after a replay there is none, and whoever
    looks at the model's parameters next must find the shards.

    Args:
        model: any.
    """
    shards = _types("torch.distributed.fsdp", "FSDPModule")
    for module in model.modules() if shards else ():
        if isinstance(module, shards):
            module.reshard()  # type: ignore[operator]


def _types(module: str, name: str) -> tuple[type, ...]:
    """A class of torch's, if its module was imported: importing it would cost a second, and no instance is at hand."""
    found = getattr(sys.modules.get(module), name, None)
    return (found,) if isinstance(found, type) else ()
