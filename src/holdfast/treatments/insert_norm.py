"""`insert-norm`: a normaliser in front of layers, fresh or starting as the identity."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.core.treatment import Plan
from holdfast.live.surgery import check_model, check_place, one_line, operate
from holdfast.treatments.change import Batch, Change, planned
from holdfast.treatments.identity import LINES, Moments, moments_before
from holdfast.treatments.incoming import batch_fails, stream_into
from holdfast.treatments.left import left_alone, why_nothing
from holdfast.treatments.places import (
    ACTIVATIONS,
    WEIGHTED,
    Leaf,
    expression,
    leaves,
    named,
    norm_before,
    paths_of,
)

Kind = Literal["auto", "batch", "layer"]
Start = Literal["fresh", "identity"]

FIRST_LINES = """\
from collections import OrderedDict
# before the optimiser is made: it steps the new norms too"""
"""Of the lines for a script."""


def check_kind(kind: object) -> None:
    """Refuse a kind of normaliser that does not exist.

    Args:
        kind: any value.

    Raises:
        InputError: it is none of `Kind`.
    """
    if kind not in get_args(Kind):
        raise InputError("kind= one of " + ", ".join(map(repr, get_args(Kind))), repr(kind), 'type: kind="auto"')


@dataclass(frozen=True, slots=True)
class Norm:
    """A normaliser to be made: the name of its class in `torch.nn`, its positional arguments, and how it starts."""

    kind: str
    arguments: tuple[int, ...]
    identity_of: Moments | None = None

    def make(self) -> nn.Module:
        """A new one: fresh, or the identity in eval mode."""
        norm = getattr(nn, self.kind)(*self.arguments)
        return norm if self.identity_of is None else self.identity_of.settle(norm)

    def __str__(self) -> str:
        return f"nn.{self.kind}({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True, slots=True, eq=False)
class InsertNorm:
    """Puts a BatchNorm or LayerNorm in front of layers: fresh, or a BatchNorm that starts as the identity.

    What it does:
        Each named layer becomes `nn.Sequential(norm=…, layer=the layer itself)`, so that its parameters, hooks and
        optimiser state stay. The norm joins the layer's optimiser group, beside its bias. Without sites: in front of
        every linear and convolutional layer but the first that has no normaliser before it. The state_dict changes:
        `fc2.weight` becomes `fc2.layer.weight`, and `fc2.norm.…` is new; the receipt lists every key, and
        `receipt.convert` carries old checkpoints over.
        `start="fresh"`: γ = 1, β = 0. `start="identity"`: from mean μ and unbiased variance σ² of each channel on the
        batch, running mean = β = μ, running variance = σ², γ = √(σ² + ε); then eval mode computes what it computed,
        up to rounding.

    When it helps:
        When a layer's input distribution moves under it faster than it can follow, or drives its units into
        saturation: named at a sigmoid, the norm stands between the weights and the sigmoid, as in the paper. Fresh
        early on; as the identity in a network that has learnt something worth keeping.

    When it is wrong:
        Fresh is no repair of a trained network: it changes the function. A fresh BatchNorm is nearly the identity in
        eval mode until it has seen training batches, so that the eval figure of the receipt alone says little.
        Identity preserves the function and thus the pathology: a dead signal stays dead, a saturated one saturated;
        `start="fresh"` is the one that changes it. Nor is it the identity in train mode, where each batch brings its
        own statistics: the receipt gives that error too. A channel that does not vary over the batch gets γ = √ε,
        which holds it still in training until γ grows; the diff counts those.
        BatchNorm with few samples a batch, in recurrent layers or with sequences padded to length: `kind="auto"` takes
        LayerNorm there, where a batch shows it; that normalises each sample by itself, which no γ, β undo, so that it
        cannot start as the identity. When batch noise, not drift, is the trouble. Code that reads `model.fc2.weight`
        finds it one level lower.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))
        >>> plan = InsertNorm().plan(model, None)
        >>> print(plan.source)
        from collections import OrderedDict
        # before the optimiser is made: it steps the new norms too
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
        start: `"fresh"`, or `"identity"`, which needs a batch.
        batch: what the model is called with; then shapes and order are those seen, and the receipt states the error.

    References:
        Ioffe and Szegedy, Batch normalization, 2015, arXiv:1502.03167.
        Ba, Kiros and Hinton, Layer normalization, 2016, arXiv:1607.06450.
    """

    name = "insert-norm"

    kind: Any = "auto"
    start: Any = "fresh"
    batch: Batch | None = None

    def __post_init__(self) -> None:
        """Refuse a kind or a start that does not exist.

        Raises:
            InputError: it is unknown.
        """
        check_kind(self.kind)
        if self.start not in get_args(Start):
            raise InputError('start="fresh" or "identity"', repr(self.start), 'type: InsertNorm(start="identity")')

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out which norm goes where.

        Args:
            model: the model.
            optimizer: the one that steps it, if any.
            sites: in front of which layers; every qualifying one when none is named.

        Returns:
            The plan; its diff also names the layers left alone, and why.

        Raises:
            SurgeryError: no layer qualifies, the model cannot be operated on, or a norm cannot start as the identity.
        """
        check_model(model)
        self._check_start()
        order = leaves(model, self.batch)
        places = _named_in_order(model, order, sites) if sites else _default(order)
        norms: dict[int, Norm] = {}
        left: dict[int, str] = {}
        for path, module in places:
            norm = self._norm(model, order, path, module, norms)
            if isinstance(norm, Norm):
                norms[id(module)] = norm
            else:
                left[id(module)] = left_alone(path, norm)
        if not norms:
            raise SurgeryError(
                "a layer that can take a normaliser in front",
                why_nothing(left.values()) or "no linear or convolutional layer behind the first",
                "name layers with sites=, give batch= so that shapes are known, or write the norm into the model",
            )
        if self.start == "identity":
            norms = self._identities(places, norms, model)
        diff = [
            line
            for path, module in places
            for line in ([left[id(module)]] if id(module) in left else _difference(path, module, norms[id(module)]))
        ]

        def change() -> Change:
            surgery = operate(
                model, optimizer, lambda module, _: _wrapped(norms[id(module)], module) if id(module) in norms else None
            )
            if len(surgery.replacements) != len(norms):
                surgery.undo()
                raise SurgeryError("the model as it was planned for", "one that changed since", "plan again")
            return Change(surgery.changes, surgery.undo, surgery.renamed)

        source = _source(model, [module for _, module in places if id(module) in norms], norms)
        return planned(
            self.name, model, change, diff="\n".join(diff), source=source, batch=self.batch, optimizer=optimizer
        )

    def _check_start(self) -> None:
        if self.start == "identity" and self.kind == "layer":
            raise SurgeryError(
                "a normaliser that can start as the identity: a BatchNorm",
                'kind="layer", which normalises each sample by itself: no γ, β give all samples back',
                'type: InsertNorm("batch", start="identity", batch=inputs), or start="fresh"',
            )
        if self.start == "identity" and self.batch is None:
            raise SurgeryError(
                "a batch whose statistics make the norm the identity",
                "none",
                'type: InsertNorm(start="identity", batch=inputs)',
            )

    def _identities(
        self, places: Sequence[tuple[str, nn.Module]], norms: Mapping[int, Norm], model: nn.Module
    ) -> dict[int, Norm]:
        """The same norms, each with the moments of what will flow into it."""
        assert self.batch is not None  # checked at the beginning
        moments = moments_before(model, [module for _, module in places if id(module) in norms], self.batch)
        begun = {}
        for path, module in places:
            found = moments.get(id(module))
            if isinstance(found, str):
                raise SurgeryError(
                    "a batch whose statistics make each norm the identity",
                    f"one on which they fail in front of {path}: {found}",
                    "give another batch, or name other layers with sites=",
                )
            if found is not None:
                begun[id(module)] = replace(norms[id(module)], identity_of=found)
        return begun

    def _norm(
        self, model: nn.Module, order: Sequence[Leaf], path: str, module: nn.Module, planned: Container[int]
    ) -> Norm | str:
        """The norm for one layer, or the reason why there is none."""
        if is_parametrized(module):
            return "its weight is computed from others (parametrisation)"
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
        stream = stream_into(order, module)
        if stream is None:
            return "its number of features is not known without a batch"
        if stream.width < 2:
            return "it has one input feature only"
        per_sample = self.kind == "layer" or (self.kind == "auto" and batch_fails(model, stream))
        if per_sample and self.start == "identity":
            return 'LayerNorm would serve here, and it cannot start as the identity: say kind="batch"'
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


def _difference(path: str, module: nn.Module, norm: Norm) -> list[str]:
    lines = [f"- {path}: {one_line(module)}", f"+ {path}: {one_line(_wrapped(norm, module))}"]
    if norm.identity_of is not None:
        lines[1] += ", the identity in eval mode"
        still = norm.identity_of.still(eps := nn.BatchNorm1d(1).eps)
        if still:
            lines.append(
                f"  {path}: {still} of {norm.arguments[0]} channels have an SD below √ε = {eps**0.5:.2g} on the batch: "
                "training holds them there until γ grows"
            )
    return lines


def _source(model: nn.Module, modules: Sequence[nn.Module], norms: Mapping[int, Norm]) -> str:
    names = [[expression(model, each) for each in paths_of(model, module)] for module in modules]
    identity = any(norm.identity_of is not None for norm in norms.values())
    lines = [FIRST_LINES, *([LINES.format(layers=", ".join(each[0] for each in names))] if identity else [])]
    for module, each in zip(modules, names, strict=True):
        norm = f"identity({norms[id(module)]}, {each[0]})" if identity else str(norms[id(module)])
        lines.append(f"{' = '.join(each)} = nn.Sequential(OrderedDict(norm={norm}, layer={each[0]}))")
    return "\n".join(lines)


def _named_in_order(model: nn.Module, order: Sequence[Leaf], sites: Sequence[Site]) -> list[tuple[str, nn.Module]]:
    places = {id(leaf.module): place for place, leaf in enumerate(order)}
    return sorted(named(model, sites), key=lambda each: places.get(id(each[1]), len(places)))


def _default(order: Sequence[Leaf]) -> list[tuple[str, nn.Module]]:
    """Every layer with a matrix but the first, whose input is data."""
    return [
        (leaf.path, leaf.module)
        for leaf in order
        if type(leaf.module) in WEIGHTED or (isinstance(leaf.module, WEIGHTED) and is_parametrized(leaf.module))
    ][1:]
