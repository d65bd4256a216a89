"""BatchNorm layers that stay in eval mode, whatever the model around them is told."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from holdfast.core.errors import SurgeryError
from holdfast.norms.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from holdfast.norms.ghost_batch_norm import GhostBatchNorm
from holdfast.norms.sync_batch_norm import SyncBatchNorm


class FrozenBatchNorm(_BatchNorm):
    """A BatchNorm whose mode is eval for good: running statistics in, running statistics kept.

    `training` is a property, so that neither `model.train()` nor an assignment turns it on. What was asked for is
    remembered, for the day the layer is an ordinary one again.
    """

    @property
    def training(self) -> bool:
        """Always false."""
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        self.__dict__["training"] = mode


class FrozenBatchNorm1d(FrozenBatchNorm, nn.BatchNorm1d):
    """A frozen `nn.BatchNorm1d`."""


class FrozenBatchNorm2d(FrozenBatchNorm, nn.BatchNorm2d):
    """A frozen `nn.BatchNorm2d`."""


class FrozenBatchNorm3d(FrozenBatchNorm, nn.BatchNorm3d):
    """A frozen `nn.BatchNorm3d`."""


class FrozenSyncBatchNorm(FrozenBatchNorm, nn.SyncBatchNorm):
    """A frozen `nn.SyncBatchNorm`, which has nothing to synchronise."""


class FrozenOwnBatchNorm1d(FrozenBatchNorm, BatchNorm1d):
    """A frozen `holdfast.norms.BatchNorm1d`."""


class FrozenOwnBatchNorm2d(FrozenBatchNorm, BatchNorm2d):
    """A frozen `holdfast.norms.BatchNorm2d`."""


class FrozenOwnBatchNorm3d(FrozenBatchNorm, BatchNorm3d):
    """A frozen `holdfast.norms.BatchNorm3d`."""


class FrozenOwnSyncBatchNorm(FrozenBatchNorm, SyncBatchNorm):
    """A frozen `holdfast.norms.SyncBatchNorm`, which has nothing to synchronise."""


class FrozenGhostBatchNorm(FrozenBatchNorm, GhostBatchNorm):
    """A frozen `GhostBatchNorm`, which has no chunks."""


FROZEN: dict[type[nn.Module], type[FrozenBatchNorm]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
    nn.SyncBatchNorm: FrozenSyncBatchNorm,
    BatchNorm1d: FrozenOwnBatchNorm1d,
    BatchNorm2d: FrozenOwnBatchNorm2d,
    BatchNorm3d: FrozenOwnBatchNorm3d,
    SyncBatchNorm: FrozenOwnSyncBatchNorm,
    GhostBatchNorm: FrozenGhostBatchNorm,
}
"""What each class becomes; the others may use their statistics in their own way."""


def freeze(norm: Any, *, affine: bool = False) -> None:
    """Make a layer a frozen one, in place: the same object, parameters, buffers, hooks and state_dict keys.

    Args:
        norm: a layer of a class in `FROZEN`.
        affine: fix γ and β too: no gradient, so that optimisers skip them.

    Raises:
        SurgeryError: it is of another class.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> freeze(norm)
        >>> norm.train().training, norm
        (False, FrozenBatchNorm1d(2, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True))
    """
    if type(norm) not in FROZEN:
        raise SurgeryError(
            " or ".join(dict.fromkeys(kind.__name__ for kind in FROZEN)),
            f"a {type(norm).__name__}",
            "leave it as it is",
        )
    # As torch's own lazy modules and parametrisations do: nothing that holds the layer needs to be told.
    norm.__class__ = FROZEN[type(norm)]
    for parameter in norm.parameters(recurse=False) if affine else ():
        parameter.requires_grad_(False)
        parameter.grad = None
