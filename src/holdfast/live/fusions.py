"""`Fusions`: streams that are added or concatenated, and what each brings to the layer that takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.live.hooks import HookSet
from holdfast.live.inner import inner_model
from holdfast.live.labelled_batch import gradients_of
from holdfast.live.lays import is_time_first
from holdfast.live.measurable import unmeasured
from holdfast.live.merges import Merge, Merges, Value
from holdfast.live.operations import operation_name
from holdfast.live.replay import Call, replay
from holdfast.live.tensors import tensors_in

MOST_ELEMENTS = 1 << 18
"""Of a stream or a contribution that are kept."""

_JOINING = ("cat", "concat", "concatenate")
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Part = Callable[[], Tensor]


@dataclass(slots=True, eq=False)
class Fusion:
    """Streams that meet, seen from one layer that takes them.

    Args:
        kind: `"add"` or `"cat"`.
        layer: path of the linear layer that takes the result as it is; where none does, of the module in whose forward
            they meet.
        call: which call of the layer, or which fusion in that module.
        names: of the streams: the layers that they come from, or `input`.
        streams: as they enter, samples first; one that is broadcast as it is added.
        contributions: what each brings to the layer's output, samples first; they add up to the output without its
            bias. Without a layer, each stream's part of the result. Of large tensors evenly spaced elements are kept.
        gradients: what each brings to the gradient of the layer's weight; they add up to it. Empty where it was not
            asked for, or no layer takes them.
    """

    kind: str
    layer: str
    call: int
    names: tuple[str, ...]
    streams: tuple[Tensor, ...]
    contributions: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...] = ()
    _source: _Source | None = field(default=None, repr=False)


class _Source(NamedTuple):
    layer: nn.Module
    parts: tuple[_Part, ...]


def fusions(
    model: nn.Module,
    call: Call,
    *,
    loss_of: Callable[[Any], Tensor] | None = None,
) -> list[Fusion]:
    """Follow a call and take its fusions apart.

    A chain of additions in one forward is one fusion. Concatenations along the axis of the samples are none.

    Args:
        model: a compiled or a distributed one is looked into.
        call: to repeat; with `loss_of` twice, the second time with gradients.
        loss_of: the loss of the model's output, for the gradients.

    Returns:
        The fusions, in the order in which their layers run.

    Example:
        >>> from holdfast.live.replay import record_call
        >>> class Fused(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b, self.head = nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(5, 1)
        ...     def forward(self, x):
        ...         return self.head(torch.cat([self.a(x), self.b(x)], dim=1))
        >>> (fusion,) = fusions(Fused(), record_call((torch.ones(6, 4),), {}))
        >>> fusion.kind, fusion.layer, fusion.names, [tuple(each.shape) for each in fusion.streams]
        ('cat', 'head', ('a', 'b'), [(6, 3), (6, 2)])
    """
    inner = inner_model(model)
    passage = _Fusions(inner)
    passage.follow(inner, call)
    found = passage.finished()
    if loss_of is not None:
        _add_gradients(inner, call, loss_of, [each for each in found if each._source is not None])
    for each in found:
        each._source = None
    return found


class _Streams(NamedTuple):
    """What entered one merge."""

    kind: str
    values: tuple[Value | None, ...]
    tensors: tuple[Tensor, ...]
    parts: tuple[_Part, ...]  # made when wanted, of the result's shape: they add up to it
    shape: tuple[int, ...]


class _Fusions(Merges):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._time_first = is_time_first(model)
        self._entering: dict[Merge, _Streams] = {}
        self._merged: dict[Value, Merge] = {}
        self._taken: dict[Value, bool] = {}
        self._times: dict[tuple[str, str], int] = {}
        self._fusions: list[Fusion] = []

    def before(self, function: Callable[..., Any], inputs: Any) -> Any:
        """Keep the streams before they merge: one may be overwritten."""
        memo = super().before(function, inputs)
        if memo is None or len(memo[2]) < 2:
            return memo, None
        return memo, self._streams(operation_name(function), *inputs)

    def after(self, function: Callable[..., Any], inputs: Any, output: Any, memo: Any) -> None:
        """Note which merge they entered."""
        merges, streams = memo
        count = len(self.found)
        super().after(function, inputs, output, merges)
        if streams is not None and len(self.found) > count:
            merge = self.found[-1]
            self._entering[merge] = streams
            self._merged[merge.value] = merge

    def entered(self, path: str, module: nn.Module, inputs: Any) -> None:
        """Take the input of a linear layer apart."""
        idle = self._leaf is None
        super().entered(path, module, inputs)
        if not idle or self._leaf is not module or not isinstance(module, _LINEAR):
            return
        for tensor in tensors_in(inputs)[:1]:
            value = self._value(tensor)
            streams = None if value is None else self._gathered(value)
            if value is not None and streams is not None and streams.shape == tuple(tensor.shape):
                self._taken[value] = True
                self._fusions.append(self._fusion(streams, path, self.calls.get(path, 0), module))

    def finished(self) -> list[Fusion]:
        """All fusions; those that no linear layer takes as they are come last."""
        inner = {part for merge in self.found for part in self._inner(merge)}
        for merge in self.found:
            if merge.value in self._taken or merge in inner:
                continue
            streams = self._gathered(merge.value)
            if streams is not None:
                key = merge.owner, merge.kind
                self._times[key] = self._times.get(key, 0) + 1
                self._fusions.append(self._fusion(streams, merge.owner, self._times[key] - 1, None))
        return self._fusions

    def _streams(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Streams | None:
        joining = name in _JOINING
        given = [kwargs.get("tensors", args[0] if args else ())] if joining else [*args[:2], kwargs.get("other")]
        tensors = [each.detach().clone() for each in tensors_in(given) if unmeasured(each) is None and each.numel()]
        values = [self._value(each) for each in tensors_in(given) if unmeasured(each) is None and each.numel()]
        if len(tensors) < 2:
            return None
        if joining:
            dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0)) % tensors[0].ndim
            if dim == self._samples_of(tensors[0]):
                return None
            parts = tuple(partial(_padded, tensors, k, dim) for k in range(len(tensors)))
            shape = (*tensors[0].shape[:dim], sum(each.shape[dim] for each in tensors), *tensors[0].shape[dim + 1 :])
            return _Streams("cat", tuple(values), tuple(tensors), parts, shape)
        tensors[1] = tensors[1] * kwargs.get("alpha", 1)
        whole = tuple(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]
        parts = tuple(partial(Tensor.detach, each) for each in whole)
        return _Streams("add", tuple(values), whole, parts, tuple(whole[0].shape))

    def _samples_of(self, tensor: Tensor) -> int:
        return 1 if self._time_first and tensor.ndim == 3 else 0

    def _inner(self, merge: Merge) -> list[Merge]:
        """The additions whose result goes nowhere but into this addition, in the same forward."""
        operands = (self._merged.get(operand.value) for operand in merge.operands)
        return [
            each
            for each in operands
            if each is not None
            and len(self.uses[each.value]) == 1
            and each.kind == merge.kind == "add"
            and each.owner == merge.owner
        ]

    def _gathered(self, value: Value) -> _Streams | None:
        """The streams of a merge, those of the additions inside it in their place."""
        merge = self._merged.get(value)
        if merge is None:
            return None
        own = self._entering[merge]
        inner = {each.value: each for each in self._inner(merge)}
        values, tensors, parts = list[Value | None](), list[Tensor](), list[_Part]()
        for source, tensor, part in zip(own.values, own.tensors, own.parts, strict=True):
            below = self._gathered(source) if source is not None and source in inner else None
            if below is None or below.shape != own.shape:
                below = _Streams(own.kind, (source,), (tensor,), (part,), own.shape)
            values += below.values
            tensors += below.tensors
            parts += below.parts
        return _Streams(own.kind, tuple(values), tuple(tensors), tuple(parts), own.shape)

    @torch.no_grad()
    def _fusion(self, streams: _Streams, layer: str, call: int, module: nn.Module | None) -> Fusion:
        if module is None:
            contributions = tuple(part() for part in streams.parts)
        else:
            weight: Any = module.weight
            contributions = tuple(_applied(module, part(), weight) for part in streams.parts)
        source = None if module is None else _Source(module, streams.parts)
        kept = [tuple(self._thinned(each) for each in group) for group in (streams.tensors, contributions)]
        return Fusion(streams.kind, layer, call, _names(streams.values), kept[0], kept[1], _source=source)

    def _thinned(self, tensor: Tensor) -> Tensor:
        """Samples first; of a large tensor evenly spaced elements, the same of every sample."""
        tensor = tensor.movedim(self._samples_of(tensor), 0)
        step = math.ceil(tensor.numel() / MOST_ELEMENTS)
        return (tensor if step == 1 else tensor.flatten(1)[:, :: step | 1].clone()).cpu()


def _padded(tensors: Sequence[Tensor], place: int, dim: int) -> Tensor:
    """One of them in its place among zeros."""
    return torch.cat([each if k == place else torch.zeros_like(each) for k, each in enumerate(tensors)], dim)


def _applied(layer: nn.Module, part: Tensor, weight: Tensor) -> Tensor:
    """What a linear layer makes of a part of its input, without its bias and without its hooks."""
    if isinstance(layer, nn.Linear):
        return F.linear(part, weight)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return layer._conv_forward(part, weight, None)


def _names(values: Sequence[Value | None]) -> tuple[str, ...]:
    names = [_name(value) for value in values]
    return tuple(f"{name}#{names[:k].count(name)}" if names.count(name) > 1 else name for k, name in enumerate(names))


def _name(value: Value | None) -> str:
    """The nearest layers that a stream comes from."""
    if value is None:
        return "constant"
    open_, seen, leaves = [value], set[Value](), dict[str, None]()
    while open_:
        each = open_.pop(0)
        if each in seen:
            continue
        seen.add(each)
        if each.leaf or not each.parents:
            leaves[each.leaf or "input"] = None
        else:
            open_ += each.parents
    return "+".join(leaves)


def _add_gradients(model: nn.Module, call: Call, loss_of: Callable[[Any], Tensor], found: Sequence[Fusion]) -> None:
    """Repeat the call with a graph, and give each stream its part of the weight's gradient."""
    outputs: dict[tuple[str, int], Tensor] = {}
    calls: dict[str, int] = {}
    layers = {each.layer: each._source.layer for each in found if each._source is not None}

    def behind(path: str) -> Callable[..., None]:
        def post(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            calls[path] = calls.get(path, 0) + 1
            outputs[path, calls[path] - 1] = output

        return post

    def gradients(output: Any) -> list[Tensor | None]:
        loss = loss_of(output)
        wanted = [outputs.get((each.layer, each.call)) for each in found]
        known = [each for each in wanted if each is not None and each.requires_grad]
        given = iter(gradients_of(loss, known) if known else ())
        return [next(given) if each is not None and each.requires_grad else None for each in wanted]

    hooks = HookSet()
    for path, module in layers.items():
        hooks.post(module, behind(path))
    with hooks:
        at_outputs = replay(model, call, then=gradients)
    for each, gradient in zip(found, at_outputs, strict=True):
        if gradient is not None and each._source is not None:
            each.gradients = tuple(
                _weight_gradient(each._source.layer, part(), gradient) for part in each._source.parts
            )


def _weight_gradient(layer: nn.Module, part: Tensor, gradient: Tensor) -> Tensor:
    """∂L/∂W from one part of a linear layer's input: linear in the input, so that parts add up."""
    weight: Any = layer.weight
    kind = torch.float64 if weight.dtype is torch.float64 else torch.float32
    twin = weight.detach().to(kind).requires_grad_()
    with torch.enable_grad():
        output = _applied(layer, part.to(kind), twin)
        return torch.autograd.grad(output, twin, gradient.to(kind))[0].cpu()
