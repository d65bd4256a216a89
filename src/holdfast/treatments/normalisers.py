"""Which normaliser can stand where another stood: its class and settings, or the reason why none can."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.norms.adopt import OURS, TORCHS
from holdfast.norms.ghost_batch_norm import GhostBatchNorm
from holdfast.treatments.places import Leaf

Kind = Literal["batch", "ghost", "group", "instance", "layer", "rms"]

KINDS: tuple[Kind, ...] = get_args(Kind)

_BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_LAST = (nn.LayerNorm, nn.RMSNorm)
KNOWN: tuple[type[nn.Module], ...] = (*OURS, *TORCHS, GhostBatchNorm)
"""Exactly these types, torch's and ours: a subclass may use its statistics or its γ in its own way."""

_GROUPS = 32
_CHANNELS_PER_GROUP = 16


@dataclass(frozen=True, slots=True)
class Spec:
    """A normaliser to be made: its class, positional arguments and settings that differ from the defaults."""

    kind: type[nn.Module]
    arguments: tuple[Any, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self) -> nn.Module:
        """A fresh one."""
        return self.kind(*self.arguments, **self.settings)

    def __str__(self) -> str:
        home = "nn." if self.kind.__module__.startswith("torch.") else ""
        inner = [*map(str, self.arguments), *(f"{name}={value!r}" for name, value in self.settings.items())]
        return f"{home}{self.kind.__name__}({', '.join(inner)})"


@dataclass(frozen=True, slots=True)
class _Stream:
    """What flows into a normaliser with channels on axis 1; `None` where only a batch could tell."""

    channels: int
    axes: int | None
    positions: int | None

    @property
    def values(self) -> int | None:
        """Values of one sample, where they are known to be one, or not."""
        return None if self.positions is None else self.channels * self.positions


def group_count(channels: int, positions: int = 1) -> int:
    """How many groups a GroupNorm of so many channels gets.

    The greatest divisor of `channels` up to 32 that leaves at least 2 channels and 16 values to a group: 32 groups and
    16 channels a group are the two settings of the paper that lose least. A group never holds one value, unless the
    sample does.

    Args:
        channels: how many there are.
        positions: of each channel in one sample (height × width); 1 where they are not known.

    Returns:
        A divisor of `channels`; 1 where no division leaves enough.

    Raises:
        InputError: one of them is not at least 1.

    Example:
        >>> group_count(64), group_count(64, positions=49), group_count(17), group_count(1)
        (4, 32, 1, 1)
    """
    if channels < 1 or positions < 1:
        raise InputError("at least one channel and one position", f"{channels} and {positions}", "give positive counts")
    for groups in range(min(_GROUPS, channels // 2), 1, -1):
        if channels % groups == 0 and channels // groups * positions >= _CHANNELS_PER_GROUP:
            return groups
    return 1


def is_kind(module: nn.Module, kind: Kind) -> bool:
    """Whether a normaliser is of a kind already.

    Example:
        >>> is_kind(nn.GroupNorm(1, 4), "layer"), is_kind(nn.GroupNorm(2, 4), "layer")
        (True, False)
    """
    own = torchs(module)
    if kind == "layer" and own is nn.GroupNorm:
        return module.num_groups == 1  # type: ignore[return-value]
    types: dict[Kind, tuple[type[nn.Module], ...]] = {
        "batch": (*_BATCH, nn.SyncBatchNorm),
        "ghost": (GhostBatchNorm,),
        "group": (nn.GroupNorm,),
        "instance": _INSTANCE,
        "layer": (nn.LayerNorm,),
        "rms": (nn.RMSNorm,),
    }
    return own in types[kind]


def torchs(module: nn.Module) -> type[nn.Module]:
    """The class of torch's whose place one of ours takes, else the module's own.

    Example:
        >>> from holdfast.norms import GroupNorm
        >>> torchs(GroupNorm(2, 4)) is torchs(nn.GroupNorm(2, 4))
        True
    """
    return TORCHS.get(type(module), type(module))


def counterpart(module: nn.Module, kind: Kind, leaf: Leaf | None, chunk_size: int = 32) -> Spec | str:
    """The normaliser of a kind that can stand where another stands.

    Args:
        module: the one that stands there.
        kind: of the one wanted.
        leaf: how it was met on a batch; `None` or without a shape when there was none.
        chunk_size: of `GhostBatchNorm`.

    Returns:
        What to make, or the reason why there is none. For one of torch's it is torch's, for one of ours it is ours.

    Example:
        >>> str(counterpart(nn.BatchNorm2d(64, eps=0.001), "group", None))
        'nn.GroupNorm(4, 64, eps=0.001)'
        >>> counterpart(nn.BatchNorm2d(64), "rms", None)
        'RMSNorm reads the features from the last axis, its channels are on axis 1'
    """
    if type(module) not in KNOWN:
        return f"{type(module).__name__} is not a normaliser that this treatment knows"
    if is_kind(module, kind):
        return f"it is a {type(module).__name__} already"
    found = _counterpart(module, kind, leaf, chunk_size)
    if isinstance(found, str) or type(module) in OURS:
        return found
    return replace(found, kind=OURS.get(found.kind, found.kind))


def _counterpart(module: nn.Module, kind: Kind, leaf: Leaf | None, chunk_size: int) -> Spec | str:
    """The same by torch's classes."""
    shape = None if leaf is None else leaf.shape
    if torchs(module) in _LAST:
        sizes = tuple(module.normalized_shape)  # type: ignore[arg-type]
        if kind in ("layer", "rms"):
            return _last(module, kind, sizes if len(sizes) > 1 else sizes[0])
        if len(sizes) != 1:
            return "it normalises over several axes, so that its γ is not one value a channel"
        if shape is None:
            return "whether its features are on axis 1 is not known without a batch"
        if len(shape) != 2:
            return f"its features are on the last axis of {len(shape)}, {kind} normalisation takes those of axis 1"
        return _first(module, kind, _Stream(sizes[0], 0, 1), chunk_size)
    stream = _stream(module, shape)
    return stream if isinstance(stream, str) else _first(module, kind, stream, chunk_size)


def _stream(module: nn.Module, shape: tuple[int, ...] | None) -> _Stream | str:
    channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    axes = {"2d": 2, "3d": 3}.get(type(module).__name__[-2:])
    if isinstance(module, nn.InstanceNorm1d):
        axes = 1
    if shape is None:
        return _Stream(channels, axes, None)  # type: ignore[arg-type]
    # InstanceNorm takes one sample without a batch axis too, and any number of channels when it has no γ
    if len(shape) < 2 or shape[1] != channels or (axes is not None and len(shape) != axes + 2):
        return f"its input of shape {shape} does not hold samples on axis 0 and {channels} channels on axis 1"
    return _Stream(channels, len(shape) - 2, math.prod(shape[2:]))  # type: ignore[arg-type]


def _first(module: nn.Module, kind: Kind, stream: _Stream, chunk_size: int) -> Spec | str:
    """For channels on axis 1."""
    channels, axes = stream.channels, stream.axes
    if kind in ("batch", "ghost"):
        if isinstance(module, nn.SyncBatchNorm):
            return "its statistics are those of all processes, which the new one would not see"
        if kind == "ghost":
            return Spec(GhostBatchNorm, (channels,), {**_tracked(module), "chunk_size": chunk_size})
        if axes is None:
            return "the number of axes is not known without a batch"
        return Spec(getattr(nn, f"BatchNorm{max(1, axes)}d"), (channels,), _tracked(module))
    if kind == "instance":
        if axes is None:
            return "whether its input has positions is not known without a batch"
        if axes == 0 or stream.positions == 1:
            return "each channel has one value a sample, of which there is no variance"
        affine = {"affine": True} if module.weight is not None else {}
        return Spec(getattr(nn, f"InstanceNorm{axes}d"), (channels,), {**_eps(module), **affine})
    if (stream.values or channels) < 2:
        return "a sample has one value, of which there is no variance" + ("" if stream.values else " (as far as known)")
    if kind == "rms":
        if axes is None:
            return "whether its features are on the last axis is not known without a batch"
        if axes:
            return "RMSNorm reads the features from the last axis, its channels are on axis 1"
        return _last(module, kind, channels)
    if kind == "layer" and axes == 0:
        return _last(module, kind, channels)
    groups = 1 if kind == "layer" else group_count(channels, stream.positions or 1)
    return Spec(nn.GroupNorm, (groups, channels), {**_eps(module), **_affine(module)})


def _last(module: nn.Module, kind: Kind, sizes: int | tuple[int, ...]) -> Spec:
    """For features on the last axes."""
    settings: dict[str, Any] = {} if module.weight is not None else {"elementwise_affine": False}
    if kind == "rms":
        return Spec(nn.RMSNorm, (sizes,), {"eps": module.eps, **settings})
    return Spec(nn.LayerNorm, (sizes,), {**_eps(module), **settings})


def _eps(module: nn.Module) -> dict[str, Any]:
    eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps  # RMSNorm's default
    return {} if eps == 1e-5 else {"eps": eps}


def _affine(module: nn.Module) -> dict[str, Any]:
    return {} if module.weight is not None else {"affine": False}


def _tracked(module: nn.Module) -> dict[str, Any]:
    settings = {**_eps(module), **_affine(module)}
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        settings |= {} if module.momentum == 0.1 else {"momentum": module.momentum}
        settings |= {} if module.track_running_stats else {"track_running_stats": False}
    return settings
