"""`adopt` and `release`: torch's normalisers of a live model become ours, and the other way, in place."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from holdfast.core.errors import InputError
from holdfast.norms.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from holdfast.norms.group_norm import GroupNorm
from holdfast.norms.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from holdfast.norms.layer_norm import LayerNorm
from holdfast.norms.normaliser import HALVES, Normaliser
from holdfast.norms.rms_norm import RMSNorm
from holdfast.norms.running import Tracked, check_eps, check_momentum
from holdfast.norms.sync_batch_norm import SyncBatchNorm

OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    nn.GroupNorm: GroupNorm,
    nn.LayerNorm: LayerNorm,
    nn.RMSNorm: RMSNorm,
}
"""Each normaliser of torch's and the one of ours that takes its place; ours differ by no parameter and no buffer."""

TORCHS: dict[type[nn.Module], type[nn.Module]] = {ours: torchs for torchs, ours in OURS.items()}
"""The other way round."""

_OWN = ("_kept", "_listened", "_pool", "strict")
"""Attributes that torch's layers do not have."""

Model = TypeVar("Model", bound=nn.Module)


def adopt(model: Model) -> Model:
    """Make every normaliser of torch's in a model the one of ours of the same name.

    The modules stay the same objects and only change their class. Parameters, buffers, hooks, modes and names
    therefore stay, modules that are shared stay shared, and an optimiser needs no mending. Subclasses and
    parametrised layers are left alone: they may use their statistics in their own way.

    Args:
        model: changed in place, or itself such a layer. Running statistics in half precision become float32.

    Returns:
        The same model.

    Raises:
        InputError: a layer has an ε or a momentum that ours refuses; then nothing is changed.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> type(adopt(model)[1]).__module__
        'holdfast.norms.batch_norm'
        >>> type(release(model)[1]) is nn.BatchNorm1d
        True
    """
    found = [each for each in model.modules() if type(each) in OURS]
    for module in found:
        check_eps(module.eps)  # type: ignore[arg-type]
        if isinstance(module, nn.modules.batchnorm._NormBase):
            check_momentum(module.momentum, module.eps)
    for module in found:
        module.__class__ = OURS[type(module)]
        if isinstance(module, GroupNorm):
            module.strict = False
        if isinstance(module, Normaliser):
            module._keep_statistics_wide()
    return model


def release(model: Model) -> Model:
    """Make every normaliser of ours that torch has too torch's own: the other way of `adopt`.

    Args:
        model: changed in place. Where γ is in half precision, running statistics become so too.

    Returns:
        The same model. Normalisers that torch does not have stay.

    Raises:
        InputError: running statistics are being pooled by `accumulate`; then nothing is changed.
    """
    found = [each for each in model.modules() if type(each) in TORCHS]
    if any(isinstance(each, Tracked) and each._pool is not None for each in found):
        raise InputError(
            "running statistics that move batch by batch", "some that are being pooled", "first type: pooled.close()"
        )
    for module in found:
        for name in _OWN:
            module.__dict__.pop(name, None)
        module.__class__ = TORCHS[type(module)]
        weight = getattr(module, "weight", None)
        for name in ("running_mean", "running_var"):
            buffer = module._buffers.get(name)
            if buffer is not None and weight is not None and weight.dtype in HALVES:
                module._buffers[name] = buffer.to(weight.dtype)
    return model
