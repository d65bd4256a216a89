"""`insert-norm`: a fresh normaliser in front of layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from holdfast.core.errors import SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.surgery import check_model, check_place, one_line, operate
from holdfast.treatments.change import Batch, Change, planned
from holdfast.treatments.places import (
    ACTIVATIONS,
    WEIGHTED,
    Leaf,
    expression,
    leaves,
    named,
    norm_before,
    paths_of,
    weighted_before,
)

Kind = Literal["auto", "batch", "layer"]

_FEWEST = 8
"""Samples below which batch statistics are too noisy: the variance of n normal values has the relative standard
deviation √(2/(n−1)), which is 53 % at 8."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A normaliser to be made: the name of its class in `torch.nn`, and its positional arguments."""

    kind: str
    arguments: tuple[int, ...]

    def make(self) -> nn.Module:
        """A fresh one."""
        return getattr(nn, self.kind)(*self.arguments)

    def __str__(self) -> str:
        return f"nn.{self.kind}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True, slots=True)
class _Stream:
    """What flows into a layer: how many features, on which axis, beside how many axes of positions."""

    width: int
    spatial: int
    features_last: bool
    samples: int | None
    calls: int


@dataclass(frozen=True, slots=True, eq=False)
class InsertNorm:
    """Puts a fresh BatchNorm or LayerNorm in front of layers.

    What it does:
        Each named layer becomes `nn.Sequential(norm=…, layer=the layer itself)`, so that its parameters, hooks and
        optimiser state stay. The norm begins with γ = 1, β = 0 and joins the layer's optimiser group, beside its
        bias. Without sites: in front of every linear and convolutional layer but the first that has no normaliser
        before it. The state_dict changes: `fc2.weight` becomes `fc2.layer.weight`, and `fc2.norm.…` is new; the
        receipt lists every key, and `rename_keys` of `holdfast.live.surgery` carries old checkpoints over.

    When it helps:
        When a layer's input distribution moves under it faster than it can follow, or drives its units into
        saturation: named at a sigmoid, the norm stands between the weights and the sigmoid, as in the paper.

    When it is wrong:
        It is no repair of a trained network: it changes the function. The receipt gives the error in eval mode and
        in train mode; a fresh BatchNorm is nearly the identity in eval mode until it has seen training batches, so
        that the eval figure alone says little. BatchNorm with few samples a batch, in recurrent layers or with
        sequences padded to length: `kind="auto"` takes LayerNorm there, where a batch shows it. When batch noise,
        not drift, is the trouble. Code that reads `model.fc2.weight` finds it one level lower.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))
        >>> plan = InsertNorm().plan(model, None)
        >>> print(plan.source)
        model[2] = nn.Sequential(OrderedDict(norm=nn.BatchNorm1d(8), layer=model[2]))
        >>> receipt = plan.apply()
        >>> dict(receipt.renamed)
        {'2.weight': '2.layer.weight', '2.bias': '2.layer.bias'}
        >>> receipt.undo()
        >>> list(model.state_dict())
        ['0.weight', '0.bias', '2.weight', '2.bias']

    Args:
        kind: `"batch"`; `"layer"`, which for convolutions is a GroupNorm of one group; or `"auto"`: batch statistics,
            except where they are known to fail (sequences, layers that run several times, batches below 8 samples,
            models that normalise each sample already).
        batch: what the model is called with; then shapes and order are those seen, and the receipt states the error.

    References:
        Ioffe and Szegedy, Batch normalization, 2015, arXiv:1502.03167.
        Ba, Kiros and Hinton, Layer normalization, 2016, arXiv:1607.06450.
    """

    name = "insert-norm"

    kind: Kind = "auto"
    batch: Batch | None = None

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which norm goes where.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: in front of which layers; every qualifying one when none is named.

        Returns:
            The plan; its diff also names the layers left alone, and why.

        Raises:
            SurgeryError: no layer qualifies, or the model cannot be operated on.
        """
        check_model(model)
        order = leaves(model, self.batch)
        norms: dict[int, Norm] = {}
        diff, source = [], []
        for path, module in _named_in_order(model, order, sites) if sites else _default(order):
            norm = self._norm(model, order, path, module, norms)
            if isinstance(norm, str):
                diff.append(f"  {path or 'the model'}: left as it is: {norm}")
                continue
            norms[id(module)] = norm
            diff += [f"- {path}: {one_line(module)}", f"+ {path}: {one_line(_wrapped(norm, module))}"]
            places = [expression(model, each) for each in paths_of(model, module)]
            source.append(f"{' = '.join(places)} = nn.Sequential(OrderedDict(norm={norm}, layer={places[0]}))")
        if not norms:
            raise SurgeryError(
                "a layer that can take a normaliser in front",
                "; ".join(line.strip() for line in diff) or "no linear or convolutional layer behind the first",
                "name layers with sites=, give batch= so that shapes are known, or write the norm into the model",
            )

        def change() -> Change:
            surgery = operate(
                model, optimizer, lambda module, _: _wrapped(norms[id(module)], module) if id(module) in norms else None
            )
            if len(surgery.replacements) != len(norms):
                surgery.undo()
                raise SurgeryError("the model as it was planned for", "one that changed since", "plan again")
            return Change(surgery.changes, surgery.undo, surgery.renamed)

        return planned(self.name, model, change, diff="\n".join(diff), source="\n".join(source), batch=self.batch)

    def _norm(
        self, model: nn.Module, order: Sequence[Leaf], path: str, module: nn.Module, planned: Container[int]
    ) -> Norm | str:
        """The norm for one layer, or the reason why there is none."""
        if type(module) not in WEIGHTED and type(module) not in ACTIVATIONS:
            return f"{type(module).__name__} is not a layer that this treatment knows"
        if not path:
            return "it is the model itself: wrap it in nn.Sequential first"
        before = norm_before(order, module, planned)
        if before is not None:
            return f"a normaliser {'in front of' if id(before.module) in planned else 'at'} {before.path} serves it"
        try:
            check_place(model, module, path)
        except SurgeryError as error:
            return error.got
        stream = _stream(order, module)
        if stream is None:
            return "its number of features is not known without a batch"
        if stream.width < 2:
            return "it has one input feature only"
        per_sample = self.kind == "layer" or (self.kind == "auto" and _batch_fails(model, stream))
        if stream.features_last and stream.spatial and not per_sample:
            return "BatchNorm1d would take the sequence for the features"
        if stream.features_last:
            return Norm("LayerNorm" if per_sample else "BatchNorm1d", (stream.width,))
        return (
            Norm("GroupNorm", (1, stream.width))
            if per_sample
            else Norm(f"BatchNorm{max(1, stream.spatial)}d", (stream.width,))
        )


def _wrapped(norm: Norm, module: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(norm=norm.make(), layer=module))


def _named_in_order(model: nn.Module, order: Sequence[Leaf], sites: Sequence[Site]) -> list[tuple[str, nn.Module]]:
    places = {id(leaf.module): place for place, leaf in enumerate(order)}
    return sorted(named(model, sites), key=lambda each: places.get(id(each[1]), len(places)))


def _default(order: Sequence[Leaf]) -> list[tuple[str, nn.Module]]:
    """Every layer with a matrix but the first, whose input is data."""
    return [(leaf.path, leaf.module) for leaf in order if type(leaf.module) in WEIGHTED][1:]


def _batch_fails(model: nn.Module, stream: _Stream) -> bool:
    per_sample = (nn.Embedding, nn.RNNBase, nn.MultiheadAttention, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    return (
        (stream.features_last and stream.spatial > 0)
        or stream.calls > 1
        or (stream.samples is not None and stream.samples < _FEWEST)
        or any(isinstance(module, per_sample) for module in model.modules())
    )


def _stream(order: Sequence[Leaf], module: nn.Module) -> _Stream | None:
    """What flows into a layer, from its settings, from the layer that feeds it, and from its shape on the batch."""
    leaf = next((leaf for leaf in order if leaf.module is module), None)
    shape = None if leaf is None else leaf.shape
    samples = None if shape is None else shape[0]
    calls = 1 if leaf is None else leaf.calls
    spatial = _convolved(module)
    if spatial is not None:
        return _Stream(module.in_channels, spatial, False, samples, calls)  # type: ignore[arg-type]
    if type(module) is nn.Linear:
        return _Stream(module.in_features, 0 if shape is None else len(shape) - 2, True, samples, calls)
    feeding = weighted_before(order, module)
    if feeding is None:
        return None
    spatial = _convolved(feeding.module)
    if spatial is not None and (shape is None or len(shape) == spatial + 2):
        return _Stream(feeding.module.out_channels, spatial, False, samples, calls)  # type: ignore[arg-type]
    if isinstance(feeding.module, nn.Linear):
        width = feeding.module.out_features
        if shape is None or shape[-1] == width:
            return _Stream(width, 0 if shape is None else len(shape) - 2, True, samples, calls)
    return None


def _convolved(module: nn.Module) -> int | None:
    """Axes of positions of a convolution, `None` for other layers."""
    return next((n for n, kind in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)) if isinstance(module, kind)), None)
