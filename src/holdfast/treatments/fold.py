"""`fold`: a BatchNorm on running statistics merged into the layer before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.optimiser import check_optimizer
from holdfast.live.surgery import check_model, check_place, operate
from holdfast.treatments.change import Batch, Change, call_of, difference, planned, rerun
from holdfast.treatments.follow import Followed
from holdfast.treatments.frozen import FROZEN, FrozenBatchNorm
from holdfast.treatments.left import left_alone, why_nothing
from holdfast.treatments.places import WEIGHTED, expression, leaves, named, paths_of

LAYERS: tuple[type[nn.Module], ...] = (*WEIGHTED, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Layers whose output is linear in weight and bias, channel by channel."""

_TOLERANCE = 1e-5
"""Of the largest output: some fifty roundings of float32, of which a network of twenty layers makes about ten."""

_COMPUTED = "its weight or bias is computed anew in each forward"

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_Pairs = Mapping[str, tuple[nn.Module, _BatchNorm, str]]


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Merges each BatchNorm into the linear or convolutional layer straight before it, for use after training.

    What it does:
        In eval mode γ (Wx + b − μ) / √(σ² + ε) + β with fixed μ and σ² is one linear map: with s = γ / √(σ² + ε)

            W′ = s · W (per output channel),   b′ = β + (b − μ) · s

        computed in float64 and rounded once. The layer gets W′ and b′ as new parameters, an `nn.Identity` stands where
        the BatchNorm was. The output on the batch is measured in eval mode before and after; if any differs by
        more than 1e-5 of its largest value, all is taken back.

    When it helps:
        Inference: one pass over the activations less per layer, two vectors less to store, nothing to go wrong with
        the mode.

    When it is wrong:
        For training: in train mode a BatchNorm uses the statistics of the batch, and the folded model does not; it is
        another function there (the receipt's train-mode error), without a normaliser. Keys of the state_dict go
        (those of the BatchNorm) and come (a bias), and weights have other values: load older checkpoints before
        folding, or pass them through `receipt.convert`. What a forward keeps of a layer's output in attributes of its
        own is not measured. Code that reads `norm.weight` finds none.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> x = torch.randn(4, 3, 8, 8)
        >>> _ = model(x), model.eval()
        >>> receipt = Fold(batch=x).plan(model, None).apply()
        >>> model[1], receipt.error_eval < 1e-5, receipt.error_train > 0.1
        (Identity(), True, True)
        >>> receipt.undo()
        >>> model[0].bias is None
        True

    Args:
        batch: what the model is called with; needed: on it the data's flow is followed and the outputs are compared.

    References:
        Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference,
        2017, arXiv:1712.05877, section 3.2.
    """

    name = "fold"

    batch: Batch | None = None

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which layers are merged.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: layers or BatchNorms; every pair that qualifies when none is named.

        Returns:
            The plan; its diff also names the layers left alone, and why.

        Raises:
            InputError: there is no batch, or the model does not run on it.
            SurgeryError: no pair qualifies, or model or optimiser cannot be operated on.
        """
        check_model(model)
        if optimizer is not None:
            check_optimizer(model, optimizer)
        if self.batch is None:
            raise InputError(
                "a batch, on which the flow is followed and the outputs are compared",
                "none",
                "type: holdfast.treatments.Fold(batch=inputs)",
            )
        batch = self.batch
        pairs, left = _pairs(model, batch, {id(module) for _, module in named(model, sites)})
        if not pairs:
            raise SurgeryError(
                "a linear or convolutional layer straight before a BatchNorm with running statistics",
                why_nothing(left) or "none" + (" among those named" if sites else ""),
                "leave the model as it is",
            )
        diff, source = list(left), ["from holdfast.treatments.fold import folded"]
        for path, (_, _, where) in pairs.items():
            diff += [f"- {path}, then {where}", f"+ {path} with {where} folded in; {where}: Identity()"]
            layer, norm = expression(model, path), expression(model, where)
            source.append(f"{layer}, {norm} = folded({layer}, {norm}), nn.Identity()")
        if any(norm.training for _, norm, _ in pairs.values()):
            diff.append("  the model is in train mode, where the folded one computes something else: model.eval()")

        def change() -> Change:
            return _exchange(model, optimizer, pairs, batch)

        return planned(
            self.name, model, change, diff="\n".join(diff), source="\n".join(source), batch=batch, optimizer=optimizer
        )


def folded(layer: Any, norm: Any) -> nn.Module:
    """A layer that computes what a layer and the BatchNorm behind it compute in eval mode.

    Args:
        layer: of a class in `LAYERS`; left as it is.
        norm: with running statistics, of as many features as the layer has output channels.

    Returns:
        A new layer of the same class, in the same mode, with a bias.

    Example:
        >>> layer, norm = nn.Linear(2, 3), nn.BatchNorm1d(3)
        >>> x = torch.randn(8, 2)
        >>> _ = norm(layer(x)), norm.eval()
        >>> torch.allclose(folded(layer, norm)(x), norm(layer(x)), atol=1e-6)
        True
    """
    with torch.no_grad():
        weight, bias = _merged(layer, norm, partial(getattr, layer), partial(getattr, norm))
        new = _empty(layer).train(layer.training)
        new.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
        new.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
    return new


def _merged(
    layer: Any, norm: Any, of_layer: Callable[[str], Tensor], of_norm: Callable[[str], Tensor]
) -> tuple[Tensor, Tensor]:
    """W′ and b′ for the settings of a layer and its BatchNorm, and for values of theirs by name."""
    scale = (of_norm("running_var").double() + norm.eps).rsqrt()
    shift = of_norm("running_mean").double().neg()
    if layer.bias is not None:
        shift = of_layer("bias").double() + shift
    if norm.weight is not None:
        scale = scale * of_norm("weight").double()
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + of_norm("bias").double()
    weight = of_layer("weight")
    return _scaled(layer, weight.double(), scale).to(weight.dtype), shift.to(weight.dtype)


def _scaled(layer: Any, weight: Tensor, scale: Tensor) -> Tensor:
    """The weight of a layer, each output channel times its factor."""
    if not getattr(layer, "transposed", False):
        return weight * scale.view(-1, *[1] * (weight.ndim - 1))
    # (inputs, outputs / groups, *kernel): the inputs of one group after those of the other
    factors = scale.view(layer.groups, -1).repeat_interleave(layer.in_channels // layer.groups, 0)
    return weight * factors.view(*factors.shape, *[1] * (weight.ndim - 2))


def _empty(layer: Any) -> Any:
    """A layer with the same settings and a bias, without memory and without drawing random numbers."""
    names = ["in_features", "out_features"]
    if not isinstance(layer, nn.Linear):
        names = [
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        ]
        names += ["output_padding"] if layer.transposed else []
    return type(layer)(**{name: getattr(layer, name) for name in names}, bias=True, device="meta")


def _pairs(model: nn.Module, batch: Batch, wanted: set[int]) -> tuple[dict[str, Any], list[str]]:
    """The layers to merge by path, each with its BatchNorm and that one's path; and lines about those left alone."""
    followed = Followed(model, batch, LAYERS, (_BatchNorm,), "BatchNorm", mode="eval")
    pairs: dict[str, tuple[nn.Module, _BatchNorm, str]] = {}
    left = []
    for path, layer in [(leaf.path, leaf.module) for leaf in leaves(model) if isinstance(leaf.module, LAYERS)]:
        if wanted and wanted.isdisjoint(map(id, (layer, *followed.takers(path).values()))):
            continue
        if is_parametrized(layer):
            left.append(left_alone(path, _COMPUTED))
        if type(layer) not in LAYERS:
            continue
        norm = followed.behind(path, layer)
        if isinstance(norm, _BatchNorm):
            reason = _reason(model, layer, norm, followed)
            if not reason:
                pairs[path] = (layer, norm, paths_of(model, norm)[0])
                continue
            norm = reason
        left.append(left_alone(path, str(norm)))
    return pairs, left


def _reason(model: nn.Module, layer: nn.Module, norm: _BatchNorm, followed: Followed) -> str:
    """Why a pair must stay apart, `""` when it may be merged."""
    if type(norm) not in (*FROZEN, *FROZEN.values()):
        return f"{type(norm).__name__} may use its statistics in its own way"
    if norm.running_mean is None or norm.running_var is None:
        return "the BatchNorm behind it keeps no running statistics"
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return _COMPUTED
    for each, name in ((layer, "it"), (norm, "the BatchNorm behind it")):
        if len(paths_of(model, each)) > 1:
            return f"{name} is shared"
        if any(getattr(each, hooks) for hooks in _HOOKS):
            return f"{name} has hooks, which would see other values"
        own = {id(parameter) for parameter in each.parameters(recurse=False)}
        others = (other for other in model.modules() if other is not each)
        tied = any(id(held) in own for other in others for held in other._parameters.values())
        if tied or followed.used_elsewhere(each):
            return f"a parameter of {'the layer' if each is layer else name} is used elsewhere"
        try:
            check_place(model, each, paths_of(model, each)[0])
        except SurgeryError as error:
            return error.got
    return ""


def _exchange(model: nn.Module, optimizer: Optimizer | None, pairs: _Pairs, batch: Batch) -> Change:
    """Merge, measure, and take all back where the outputs differ."""
    call = call_of(batch)
    before = rerun(model, call, "eval")
    merged: dict[int, nn.Module] = {}
    for path, (layer, norm, where) in pairs.items():
        if model.get_submodule(path) is not layer or model.get_submodule(where) is not norm:
            raise SurgeryError("the model as it was planned for", "one that changed since", "plan again")
        merged |= {id(layer): folded(layer, norm), id(norm): nn.Identity()}
    training = [where for _, norm, where in pairs.values() if norm.training and not isinstance(norm, FrozenBatchNorm)]
    surgery = operate(model, optimizer, lambda module, _: merged.get(id(module)))
    try:
        error = _relative(before, rerun(model, call, "eval"))
        if not error <= _TOLERANCE:
            raise SurgeryError(
                f"outputs in eval mode that stay within {_TOLERANCE:g} of their largest value",
                f"a change by {error:.3g} of it",
                "the change was taken back; fold in float32 or float64 without TF32, or name other layers with sites=",
            )
    except BaseException:  # Ctrl-C among them
        surgery.undo()
        raise
    lines = [f"in train mode: statistics of the batch → the running ones, folded in: {where}" for where in training]

    def values(state: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path, (layer, norm, where) in pairs.items():
            weight, bias = _merged(layer, norm, _reader(state, path), _reader(state, where))
            found |= {f"{path}.weight": weight, f"{path}.bias": bias}
        return found

    return Change((*surgery.changes, *lines), surgery.undo, surgery.renamed, surgery.removed, values)


def _reader(state: Mapping[str, Any], path: str) -> Callable[[str], Tensor]:
    """What a checkpoint holds of the module at a path, by name."""
    return lambda name: state[f"{path}.{name}"]


def _relative(before: Any, after: Any) -> float:
    """The largest difference of any output, as a share of its own largest value; NaN where one is not a number."""
    shares = [0.0]
    for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
        gap = difference(old, new)
        if isinstance(old, Tensor) and old.numel() and gap != 0:
            largest = old.abs().max().item()
            shares.append(gap / largest if largest else float("inf"))
    return float(max(shares, key=lambda share: (share != share, share)))
