"""`freeze-batchnorm`: BatchNorm layers on their running statistics in training too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from holdfast.core.errors import SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.optimiser import check_owner
from holdfast.live.surgery import check_model, one_line
from holdfast.treatments.change import Batch, Change, planned
from holdfast.treatments.frozen import FROZEN, FrozenBatchNorm, freeze
from holdfast.treatments.left import left_alone, why_nothing
from holdfast.treatments.places import expression, named


@dataclass(frozen=True, slots=True, eq=False)
class FreezeBatchNorm:
    """Lets BatchNorm layers use their running statistics in training, and keeps these as they are.

    What it does:
        Each layer becomes a frozen one of its kind: a fixed scale and shift per channel, the same function in train
        and in eval mode, which `model.train()` does not undo (that is what `norm.eval()` lacks). The object stays the
        same: parameters, buffers, hooks, state_dict keys, the optimiser. γ and β go on learning unless `affine=True`.
        Copies and pickles are frozen too.

    When it helps:
        Fine-tuning with batches too small for statistics of their own, or on data that should not move those of the
        pre-training; late in training, when noise of the batch statistics is what is left.

    When it is wrong:
        From scratch: nothing normalises then, and weights may grow until the loss diverges. With statistics that do
        not fit the weights: `re-estimate` first. A network that was trained on batch statistics computes another
        function in train mode from now on; the receipt's train-mode error says how different. A state_dict loaded
        later brings its own statistics. `nn.SyncBatchNorm.convert_sync_batchnorm` makes ordinary layers of frozen
        ones, and TorchScript does not take them: undo first.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> _ = model(torch.randn(8, 2))
        >>> receipt = FreezeBatchNorm().plan(model, None).apply()
        >>> mean = model[0].running_mean.clone()
        >>> _ = model.train()(torch.randn(8, 2))
        >>> torch.equal(model[0].running_mean, mean)
        True
        >>> receipt.undo()
        >>> type(model[0]).__name__, model[0].training
        ('BatchNorm1d', True)

    Args:
        affine: fix γ and β too; their gradients are dropped, so that the optimiser skips them.
        batch: what the model is called with; then the receipt states the error.

    References:
        Wu and Johnson, Rethinking "batch" in BatchNorm, 2021, arXiv:2105.07576, section 4.
    """

    name = "freeze-batchnorm"

    affine: bool = False
    batch: Batch | None = None

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which layers are frozen.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: which layers; every one that qualifies when none is named.

        Returns:
            The plan; its diff also names the layers left alone, and why.

        Raises:
            SurgeryError: no layer qualifies, or the model cannot be operated on.
        """
        check_model(model)
        if optimizer is not None:
            check_owner(model, optimizer)
        norms: dict[str, _BatchNorm] = {}
        diff, source = [], ["from holdfast.treatments.frozen import freeze"]
        for path, module in named(model, sites) or list(model.named_modules()):
            if not isinstance(module, _BatchNorm):
                continue
            reason = _reason(module)
            if reason:
                diff.append(left_alone(path, reason))
                continue
            norms[path] = module
            statistics = "fixed, γ and β fixed" if self.affine and module.affine else "fixed"
            diff += [f"- {path}: batch statistics in train mode", f"+ {path}: running statistics always, {statistics}"]
            source.append(f"freeze({expression(model, path)}{', affine=True' if self.affine else ''})")
        if not norms:
            raise SurgeryError(
                "a BatchNorm with running statistics",
                why_nothing(diff) or "none" + (" among those named" if sites else ""),
                "leave the model as it is",
            )

        def change() -> Change:
            return _freeze(norms, self.affine)

        return planned(self.name, model, change, diff="\n".join(diff), source="\n".join(source), batch=self.batch)


def _reason(norm: _BatchNorm) -> str:
    """Why a layer is not frozen, `""` when it may be."""
    if isinstance(norm, FrozenBatchNorm):
        return "it is frozen already"
    if type(norm) not in FROZEN:
        return f"{type(norm).__name__} may use its statistics in its own way"
    if norm.running_mean is None or norm.running_var is None:
        return "it keeps no running statistics"
    if not norm.running_mean.any() and bool((norm.running_var == 1).all()):
        return "its running statistics are those it began with; let it train, or apply re-estimate first"
    return ""


def _freeze(norms: dict[str, _BatchNorm], affine: bool) -> Change:
    """Freeze all of them or none."""
    for path, norm in norms.items():
        if type(norm) not in FROZEN:
            raise SurgeryError("the model as it was planned for", f"a {type(norm).__name__} at {path}", "plan again")
    kinds = {path: type(norm) for path, norm in norms.items()}
    learnt = [
        (path, name, each, each.requires_grad, each.grad)
        for path, norm in norms.items()
        for name, each in norm.named_parameters(recurse=False)
        if affine
    ]
    before = {path: one_line(norm) for path, norm in norms.items()}

    def restore() -> None:
        for path, norm in norms.items():
            norm.__class__ = kinds[path]
        for _, _, parameter, trained, gradient in learnt:
            parameter.requires_grad_(trained)
            parameter.grad = gradient if parameter.grad is None else parameter.grad

    def undo() -> None:
        for path, norm in norms.items():
            if type(norm) is not FROZEN[kinds[path]]:
                raise SurgeryError(
                    f"the frozen layer that was made at {path}",
                    f"a {type(norm).__name__}",
                    "undo the later change first",
                )
        restore()

    try:
        for norm in norms.values():
            freeze(norm, affine=affine)
    except BaseException:  # Ctrl-C among them
        restore()
        raise
    lines = [f"{path}: {before[path]} → {one_line(norm)}" for path, norm in norms.items()]
    lines += [f"{path}.{name}: trained → fixed" for path, name, _, trained, _ in learnt if trained]
    return Change(tuple(lines), undo)
