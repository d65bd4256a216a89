"""`drop-bias`: biases removed that a normaliser subtracts again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from holdfast.core.errors import SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.optimiser import Groups, check_optimizer
from holdfast.live.surgery import check_model
from holdfast.norms.adopt import TORCHS
from holdfast.treatments.change import Batch, Change, difference, outputs, planned
from holdfast.treatments.follow import Followed
from holdfast.treatments.left import left_alone, why_nothing
from holdfast.treatments.places import WEIGHTED, expression, leaves, named, paths_of

_TOLERANCE = 1e-3
"""Of the largest output: above rounding in float32 and in TF32, far below what a bias that counts would change."""

_ROUNDINGS = 16
"""As many of the coarsest type's may add up in a network; more than 1e-3 in half precision only."""


@dataclass(frozen=True, slots=True, eq=False)
class DropBias:
    """Removes the bias of layers whose output goes straight into a BatchNorm or InstanceNorm.

    What it does:
        The normaliser subtracts the mean of each channel, and with it any constant that the layer added. The bias
        leaves the module, the optimiser with its state, and the state_dict; the running mean is lowered by it, so that
        the output in eval mode is the same to rounding. In train mode it is the same anyway.

    When it helps:
        One parameter and one moment or two less per channel; no decay and no noise on a number without effect; a
        reader of the model is not led astray. `receipt.convert` gives older checkpoints the lowered running mean too.

    When it is wrong:
        It cures nothing: no loss falls for it. Checkpoints of before hold keys that are gone. Without a batch only
        neighbours in an `nn.Sequential` are found, and a linear layer there is taken to get samples × features. Code
        that reads `layer.bias` finds `None`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> receipt = DropBias().plan(model, None).apply()
        >>> print(*receipt.changes, sep="; ")
        0: bias of 3 → none, 1: running_mean → running_mean − bias; state_dict key 0.bias → none
        >>> receipt.undo()
        >>> len(model[0].bias)
        3

    Args:
        batch: what the model is called with; then layers are found by the data's flow, whatever the model's class,
            and the receipt states the error.

    References:
        Ioffe and Szegedy, Batch normalization, 2015, arXiv:1502.03167, section 3.2.
    """

    name = "drop-bias"

    batch: Batch | None = None

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which biases go.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: which layers; every one that qualifies when none is named.

        Returns:
            The plan; its diff also names the layers left alone, and why.

        Raises:
            SurgeryError: no layer qualifies, or model or optimiser cannot be operated on.
        """
        check_model(model)
        if optimizer is not None:
            check_optimizer(model, optimizer)
        modules = named(model, sites) or [(leaf.path, leaf.module) for leaf in leaves(model, self.batch)]
        words = "BatchNorm or InstanceNorm"
        follow = _Static(model) if self.batch is None else Followed(model, self.batch, WEIGHTED, (_NormBase,), words)
        pairs: dict[str, tuple[nn.Module, _NormBase, str]] = {}
        diff, source = [], []
        for path, module in modules:
            if isinstance(module, WEIGHTED) and is_parametrized(module) and module.bias is not None:
                diff.append(left_alone(path, "its weight or bias is computed anew in each forward"))
            if type(module) not in WEIGHTED or module._parameters.get("bias") is None:
                continue
            norm = follow.behind(path, module) if len(paths_of(model, module)) == 1 else "it is shared"
            reason = _reason(model, module, norm) if isinstance(norm, _NormBase) else norm
            if reason or not isinstance(norm, _NormBase):
                diff.append(left_alone(path, str(reason)))
                continue
            where = paths_of(model, norm)[0]
            pairs[path] = (module, norm, where)
            diff += [f"- {path}: with a bias, which {where} subtracts", f"+ {path}: without a bias"]
            source += _lines(expression(model, path), expression(model, where), norm, optimizer)
        if not pairs:
            raise SurgeryError(
                "a linear or convolutional layer with a bias straight before a BatchNorm or InstanceNorm",
                why_nothing(diff) or "none among those named",
                "leave the model as it is" if self.batch is not None else "give batch= so that the flow is followed",
            )

        def change() -> Change:
            for module, _, _ in pairs.values():
                if module._parameters.get("bias") is None:
                    raise SurgeryError("the model as it was planned for", "one that changed since", "plan again")
            before = None if self.batch is None else outputs(model, self.batch)
            made = _drop(model, optimizer, pairs)
            try:
                if before is not None and self.batch is not None:
                    _verify(before, outputs(model, self.batch), _tolerance(model, before))
            except BaseException:
                made.undo()
                raise
            return made

        return planned(
            self.name,
            model,
            change,
            diff="\n".join(diff),
            source="\n".join(source),
            batch=self.batch,
            optimizer=optimizer,
        )


class _Static:
    """Neighbours in an `nn.Sequential`."""

    def __init__(self, model: nn.Module) -> None:
        self._behind: dict[int, nn.Module] = {}
        for parent in model.modules():
            if type(parent) is nn.Sequential:
                children = list(parent)
                self._behind |= {id(a): b for a, b in itertools.pairwise(children)}
        self._model = model

    def behind(self, path: str, module: nn.Module) -> nn.Module | str:
        """The normaliser that alone takes a layer's output, or why there is none."""
        norm = self._behind.get(id(module))
        if not isinstance(norm, _NormBase):
            return "no BatchNorm or InstanceNorm stands behind it in an nn.Sequential"
        return norm if len(paths_of(self._model, norm)) == 1 else "the normaliser behind it is shared"


def _reason(model: nn.Module, module: nn.Module, norm: _NormBase) -> str:
    """Why a bias must stay in front of a normaliser, `""` when it may go."""
    bias = module._parameters["bias"]
    assert bias is not None
    holders = [each for each in model.modules() for held in each._parameters.values() if held is bias]
    if len(holders) > 1:
        return "its bias is shared"
    if norm.num_features != len(bias):
        return f"the normaliser behind it takes {norm.num_features} features, not {len(bias)}"
    if type(norm) not in TORCHS and not type(norm).__module__.startswith("torch.nn.modules."):
        return f"{type(norm).__name__} may use its statistics in its own way"
    if isinstance(module, nn.Linear) and not isinstance(norm, nn.BatchNorm1d | nn.SyncBatchNorm):
        return f"a {type(norm).__name__} behind a linear layer normalises over other axes"
    return ""


def _drop(model: nn.Module, optimizer: Optimizer | None, pairs: dict[str, tuple[nn.Module, _NormBase, str]]) -> Change:
    """Take the biases out, all or nothing."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    biases = [(module, module._parameters["bias"]) for module, _, _ in pairs.values()]
    means = [(norm.running_mean, bias) for (_, norm, _), (_, bias) in zip(pairs.values(), biases, strict=True)]
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    groups = Groups(optimizer)

    def restore() -> None:
        for module, bias in biases:
            module._parameters["bias"] = bias
        with torch.no_grad():
            for mean, value, before, after in kept:
                # where training moved it since, the constant that the layer adds again goes on top
                mean.copy_(before if torch.equal(mean, after) else mean + value.to(mean.dtype))
        groups.restore()

    lines = []
    try:
        for path, (module, norm, where) in pairs.items():
            bias = module._parameters["bias"]
            assert bias is not None
            folded = f", {where}: running_mean → running_mean − bias" if norm.running_mean is not None else ""
            lines.append(f"{path}: bias of {len(bias)} → none{folded}")
        with torch.no_grad():
            for mean, bias in means:
                if mean is not None and bias is not None:
                    before, value = mean.clone(), bias.detach()
                    after = before - value.to(mean.dtype)
                    kept.append((mean, value, before, after))
                    mean.copy_(after)
        for module, _ in biases:
            module.register_parameter("bias", None)
        lines += [f"state_dict key {path}.bias → none" for path in pairs]
        gone = nn.ParameterList([bias for _, bias in biases])
        lines += groups.mend(model, [(gone, nn.Identity())], names)
    except BaseException:
        restore()
        raise

    def undo() -> None:
        for path, (module, _, _) in pairs.items():
            if module._parameters.get("bias", module) is not None:
                raise SurgeryError(
                    f"{path} without a bias, as the treatment left it",
                    "one that was put there since",
                    "undo the later change first",
                )
        groups.check()
        restore()

    def values(state: Mapping[str, Any]) -> dict[str, Any]:
        means = {
            path: f"{where}.running_mean" for path, (_, norm, where) in pairs.items() if norm.running_mean is not None
        }
        return {mean: state[mean] - state[f"{path}.bias"].to(state[mean].dtype) for path, mean in means.items()}

    return Change(tuple(lines), undo, removed=tuple(f"{path}.bias" for path in pairs), values=values)


def _tolerance(model: nn.Module, outputs: Any) -> float:
    """What rounding may change, as a share of the largest output."""
    tensors = [each for each in (*model.parameters(), *tree_leaves(outputs)) if isinstance(each, Tensor)]
    coarsest = max((torch.finfo(each.dtype).eps for each in tensors if each.is_floating_point()), default=0.0)
    return max(_TOLERANCE, _ROUNDINGS * coarsest)


def _verify(before: Any, after: Any, tolerance: float) -> None:
    """Refuse when the outputs differ by more than rounding: then something else uses what the layer gives."""
    for mode, old, new in zip(("eval", "train"), before, after, strict=True):
        error = difference(old, new)
        scale = max(_largest(old), 1.0)
        if not error <= tolerance * scale:
            raise SurgeryError(
                "layers whose bias only the normaliser sees",
                f"a change of the output by {error:.3g} in {mode} mode",
                "the change was taken back; name other layers with sites=",
            )


def _largest(outputs: Any) -> float:
    sizes = [each.abs().max().item() for each in tree_leaves(outputs) if isinstance(each, Tensor) and each.numel()]
    return float(max(sizes, default=0.0))


def _lines(layer: str, norm: str, module: _NormBase, optimizer: Optimizer | None) -> list[str]:
    lines = []
    if module.running_mean is not None:
        lines.append(f"{norm}.running_mean -= {layer}.bias.detach()")
    if optimizer is not None:
        lines.append("for group in optimizer.param_groups:")
        if any("param_names" in group for group in optimizer.param_groups):
            lines += [
                '    pairs = list(zip(group["params"], group["param_names"]))',
                f'    group["param_names"][:] = [name for each, name in pairs if each is not {layer}.bias]',
            ]
        lines += [
            f'    group["params"][:] = [each for each in group["params"] if each is not {layer}.bias]',
            f"optimizer.state.pop({layer}.bias, None)",
        ]
    return [*lines, f'{layer}.register_parameter("bias", None)']
