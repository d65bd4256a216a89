"""`read_inputs`: what every leaf layer is given, in one forward pass repeated without a trace."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from holdfast.core.site import Site
from holdfast.core.structure import Structure
from holdfast.live.hooks import HookSet
from holdfast.live.inner import inner_model
from holdfast.live.layout import Layout, layout_of
from holdfast.live.leaves import observed_leaves
from holdfast.live.measurable import unmeasured
from holdfast.live.replay import Call, replay
from holdfast.live.traced import named_tensors

Reader = Callable[[Site, Tensor, Layout], None]


def read_inputs(
    model: nn.Module, call: Call, reader: Reader, *, stream: str = "net", structure: Structure | None = None
) -> None:
    """Replay a call and hand the tensors that each observed layer is given to a function, while they are what they are.

    Args:
        model: a compiled or a distributed one is looked into.
        call: from `record_call`.
        reader: called with site, tensor and layout; must neither change nor keep the tensor, which the model may write
            to afterwards.
        stream: the model's name in the run.
        structure: tells which layer feeds which, so that a layer that works element by element, behind a function, is
            read as the layer before it; `None` where it is not known.

    Example:
        >>> import torch
        >>> from holdfast.live.replay import record_call
        >>> net, seen = nn.Sequential(nn.Linear(3, 5), nn.ReLU()), []
        >>> call = record_call((torch.ones(2, 3),), {})
        >>> read_inputs(net, call, lambda site, tensor, layout: seen.append((site.module, tuple(tensor.shape))))
        >>> seen
        [('0', (2, 3)), ('1', (2, 5))]
    """
    inner = inner_model(model)
    sources: dict[str, tuple[str, ...]] = {}
    if structure is not None:
        sources = {path: structure.sources(path) for path in structure.order}
    listener = _Listener(reader, stream, sources, is_time_first(inner))
    hooks = HookSet()
    for path, module in observed_leaves(inner):
        hooks.pre(module, listener.before(path))
        hooks.post(module, listener.behind(path))
    with hooks:
        replay(model, call)


def is_time_first(model: nn.Module) -> bool:
    """Whether a model keeps its sequences time first: it has recurrent or attention layers, none is `batch_first`.

    Example:
        >>> is_time_first(nn.LSTM(2, 2)), is_time_first(nn.Linear(2, 2))
        (True, False)
    """
    kinds = nn.RNNBase | nn.MultiheadAttention
    return {bool(module.batch_first) for module in model.modules() if isinstance(module, kinds)} == {False}


class _Listener:
    """Knows how the tensors of one pass lie, from the layers that gave them."""

    def __init__(self, reader: Reader, stream: str, sources: Mapping[str, tuple[str, ...]], time_first: bool) -> None:
        self._reader, self._stream, self._sources, self._time_first = reader, stream, sources, time_first
        self._calls: dict[str, int] = {}
        self._inputs: dict[str, tuple[Layout, Tensor]] = {}
        self._outputs: dict[str, tuple[Layout, tuple[int, ...]]] = {}
        self._made: dict[int, tuple[weakref.ref[Tensor], Layout]] = {}

    def before(self, path: str) -> Callable[..., None]:
        def pre(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            for leaf, tensor in named_tensors((args, kwargs) if kwargs else args):
                layout = self._layout(module, tensor, leaf, self._inherited(path, tensor))
                if layout is None:
                    continue
                if leaf in ("", "0"):
                    self._inputs[path] = layout, tensor
                self._reader(Site(path, "input", self._stream, leaf, self._calls.get(path, 0)), tensor, layout)

        return pre

    def behind(self, path: str) -> Callable[..., None]:
        def post(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._calls[path] = self._calls.get(path, 0) + 1
            given = self._inputs.pop(path, None)
            for leaf, tensor in named_tensors(output):
                same = given is not None and _fits(given[0], given[1].shape, tensor)
                layout = self._layout(module, tensor, leaf, given[0] if given is not None and same else None)
                if layout is not None:
                    self._outputs[path] = layout, tuple(tensor.shape)
                    self._made[id(tensor)] = weakref.ref(tensor), layout

        return post

    def _layout(self, module: nn.Module, tensor: Tensor, leaf: str, inherited: Layout | None) -> Layout | None:
        if unmeasured(tensor) is not None or not tensor.numel():
            return None
        return layout_of(module, tensor, inherited, leaf=leaf, time_first=self._time_first)

    def _inherited(self, path: str, tensor: Tensor) -> Layout | None:
        """How the very tensor lay when it was made; else how the outputs of the layer's sources lie."""
        known = self._made.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        outputs = [self._outputs[source] for source in self._sources.get(path, ()) if source in self._outputs]
        layouts = {layout for layout, shape in outputs if _fits(layout, shape, tensor)}
        return layouts.pop() if len(layouts) == 1 and len(outputs) > 0 else None


def _fits(layout: Layout, shape: tuple[int, ...], tensor: Tensor) -> bool:
    """Whether a tensor made by functions from one of a shape has the same axes."""
    axis = layout.channels
    return axis is not None and tensor.ndim == len(shape) and tensor.shape[axis] == shape[axis]
