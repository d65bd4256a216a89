"""`make`: any normaliser of the family by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from holdfast.core.errors import InputError
from holdfast.norms.batch_layer_norm import BatchLayerNorm
from holdfast.norms.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from holdfast.norms.batch_renorm import BatchRenorm
from holdfast.norms.domain_batch_norm import DomainBatchNorm
from holdfast.norms.dynamic_tanh import DynamicTanh
from holdfast.norms.evo_norm import EvoNormB0, EvoNormS0
from holdfast.norms.filter_response_norm import FilterResponseNorm
from holdfast.norms.general import Norm
from holdfast.norms.ghost_batch_norm import GhostBatchNorm
from holdfast.norms.group_norm import GroupNorm
from holdfast.norms.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from holdfast.norms.layer_norm import LayerNorm, LayerNorm2d
from holdfast.norms.qk_norm import QKNorm
from holdfast.norms.recurrent_batch_norm import RecurrentBatchNorm
from holdfast.norms.rms_norm import RMSNorm
from holdfast.norms.scale_norm import ScaleNorm
from holdfast.norms.spec import NormSpec
from holdfast.norms.switchable_norm import SwitchableNorm
from holdfast.norms.sync_batch_norm import SyncBatchNorm
from holdfast.norms.virtual_batch_norm import VirtualBatchNorm

_BATCH = (BatchNorm1d, BatchNorm1d, BatchNorm2d, BatchNorm3d)
_INSTANCE = (None, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d)


def _instance(channels: int, dims: int, **settings: Any) -> nn.Module:
    kind = _INSTANCE[dims]
    if kind is None:
        raise InputError("positions, of which instance statistics are taken", "dims=0", "type: dims=1, 2 or 3")
    return kind(channels, **settings)


def _layer(channels: int, dims: int, **settings: Any) -> nn.Module:
    if dims == 0:
        return LayerNorm(channels, **settings)
    if dims == 2:
        return LayerNorm2d(channels, **settings)
    return Norm(NormSpec("layer", ("channels",)), channels, **settings)


def _qk(channels: int, dims: int, **settings: Any) -> nn.Module:
    if dims != 2:
        raise InputError("heads and time as the positions", f"dims={dims}", "type: dims=2")
    return QKNorm(channels, **settings)


def _recurrent(channels: int, dims: int, **settings: Any) -> nn.Module:
    if dims > 1:
        raise InputError(
            "time steps as the only positions", f"dims={dims}", "type: dims=0 for a step, 1 for a sequence"
        )
    return RecurrentBatchNorm(channels, **settings)


def _rms(channels: int, dims: int, **settings: Any) -> nn.Module:
    if dims == 0:
        return RMSNorm(channels, **settings)
    return Norm(NormSpec("rms", ("channels",), centre=False, scale="rms", bias=False), channels, **settings)


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "batch": lambda channels, dims, **settings: _BATCH[dims](channels, **settings),
    "sync": lambda channels, dims, **settings: SyncBatchNorm(channels, **settings),
    "ghost": lambda channels, dims, **settings: GhostBatchNorm(channels, **settings),
    "renorm": lambda channels, dims, **settings: BatchRenorm(channels, **settings),
    "batch-layer": lambda channels, dims, **settings: BatchLayerNorm(channels, **settings),
    "switchable": lambda channels, dims, **settings: SwitchableNorm(channels, **settings),
    "instance": _instance,
    "group": lambda channels, dims, groups=32, **settings: GroupNorm(groups, channels, **settings),
    "layer": _layer,
    "rms": _rms,
    "filter-response": lambda channels, dims, **settings: FilterResponseNorm(channels, **settings),
    "evo-b0": lambda channels, dims, **settings: EvoNormB0(channels, **settings),
    "evo-s0": lambda channels, dims, groups=32, **settings: EvoNormS0(channels, groups, **settings),
    "scale": lambda channels, dims, **settings: ScaleNorm(channels, **{"channels_last": dims == 0} | settings),
    "dynamic-tanh": lambda channels, dims, **settings: DynamicTanh(channels, **{"channels_last": dims == 0} | settings),
    "recurrent-batch": _recurrent,
    "qk": _qk,
    "domain-batch": lambda channels, dims, **settings: DomainBatchNorm(channels, **settings),
    "virtual-batch": lambda channels, dims, **settings: VirtualBatchNorm(channels, **settings),
}
"""Each takes the channels, the number of position axes and the layer's own settings."""


def make(kind: str | NormSpec, /, num_channels: int, dims: int = 2, **settings: Any) -> nn.Module:
    """A normaliser by its name, or by its specification.

    Args:
        kind: one of `MAKERS`, or a `NormSpec` of one's own.
        num_channels: channels, on axis 1 of the input; on its last axis for `layer` and `rms` without positions.
        dims: how many axes the positions are: 0 for `(batch, channels)`, 2 for pictures.
        **settings: the layer's own: `groups=8`, `chunk_size=16`, `eps=1e-3`, …

    Returns:
        A fresh module.

    Raises:
        InputError: another name, fewer than 1 channel, or positions of other than 0 to 3 axes.

    Example:
        >>> make("group", num_channels=64, dims=2, groups=8).spec.formula
        'y = γ_c · (x − μ_ng) / √(σ²_ng + ε) + β_c'
    """
    if num_channels < 1 or dims not in (0, 1, 2, 3):
        raise InputError(
            "1 channel or more and 0 to 3 axes of positions", f"{num_channels} and {dims}", "type: make('batch', 64, 2)"
        )
    if isinstance(kind, NormSpec):
        return Norm(kind, num_channels, **settings)
    if kind not in MAKERS:
        raise InputError("the name of a normaliser", repr(kind), f"one of {', '.join(MAKERS)}")
    return MAKERS[kind](num_channels, dims, **settings)
