"""`read_inputs`: what every leaf layer is given, in one pass repeated; `Lays`: how the tensors of a pass lie."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
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
    lays, calls = Lays(inner), dict[str, int]()

    def before(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for leaf, tensor, layout in lays.given(path, module, (args, kwargs) if kwargs else args, sources.get(path, ())):
            reader(Site(path, "input", stream, leaf, calls.get(path, 0)), tensor, layout)

    def behind(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[path] = calls.get(path, 0) + 1
        lays.gave(path, module, output)

    hooks = HookSet()
    for path, module in observed_leaves(inner):
        hooks.pre(module, partial(before, path))
        hooks.post(module, partial(behind, path))
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


class Lays:
    """How the tensors of one pass lie: layers that work element by element take over what the layers before them did.

    Args:
        model: whose pass it is.
    """

    def __init__(self, model: nn.Module) -> None:
        self._time_first = is_time_first(model)
        self._inputs: dict[str, tuple[Layout, tuple[int, ...]]] = {}
        self._outputs: dict[str, tuple[Layout, tuple[int, ...]]] = {}
        self._made: dict[int, tuple[weakref.ref[Tensor], Layout]] = {}

    def given(
        self, path: str, module: nn.Module, inputs: Any, sources: Iterable[str] = ()
    ) -> Iterator[tuple[str, Tensor, Layout]]:
        """What a layer that is about to run is given.

        Args:
            path: of the layer.
            module: the layer.
            inputs: its arguments.
            sources: paths of the layers that feed it, where they are known.

        Yields:
            Leaf path, tensor and layout of each tensor that has statistics.
        """
        for leaf, tensor in named_tensors(inputs):
            layout = self._layout(module, tensor, leaf, self.inherited(tensor, sources))
            if layout is not None:
                if leaf in ("", "0"):
                    self._inputs[path] = layout, tuple(tensor.shape)
                yield leaf, tensor, layout

    def gave(self, path: str, module: nn.Module, output: Any) -> None:
        """Note what a layer gave.

        Args:
            path: of the layer.
            module: the layer.
            output: of its forward.
        """
        given = self._inputs.pop(path, None)
        for leaf, tensor in named_tensors(output):
            inherited = given[0] if given is not None and _fits(*given, tensor) else None
            layout = self._layout(module, tensor, leaf, inherited)
            if layout is not None:
                self._outputs[path] = layout, tuple(tensor.shape)
                self._made[id(tensor)] = weakref.ref(tensor), layout

    def inherited(self, tensor: Tensor, sources: Iterable[str]) -> Layout | None:
        """How the very tensor lay when it was made; else how the outputs of its sources lie, where they agree.

        Args:
            tensor: any.
            sources: paths of the layers that it comes from.
        """
        known = self._made.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        outputs = (self._outputs[source] for source in sources if source in self._outputs)
        layouts = {lay[0] for lay in outputs if _fits(*lay, tensor)}
        return layouts.pop() if len(layouts) == 1 else None

    def of(self, tensor: Tensor, sources: Iterable[str]) -> Layout | None:
        """How a tensor lies that a function takes or gives.

        Args:
            tensor: any.
            sources: paths of the layers that it comes from.

        Returns:
            The layout, `None` for a tensor without statistics.
        """
        return self._layout(_NO_LAYER, tensor, "", self.inherited(tensor, sources))

    def _layout(self, module: nn.Module, tensor: Tensor, leaf: str, inherited: Layout | None) -> Layout | None:
        if unmeasured(tensor) is not None or not tensor.numel():
            return None
        return layout_of(module, tensor, inherited, leaf=leaf, time_first=self._time_first)


_NO_LAYER = nn.Identity()


def _fits(layout: Layout, shape: tuple[int, ...], tensor: Tensor) -> bool:
    """Whether a tensor made by functions from one of a shape has the same axes."""
    axis = layout.channels
    return axis is not None and tensor.ndim == len(shape) and tensor.shape[axis] == shape[axis]
