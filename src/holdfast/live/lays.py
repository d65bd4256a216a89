"""`Lays`: how the tensors of a pass lie, as the layers' kinds say or as what they were made from lies."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from holdfast.live.layout import Layout, layout_of
from holdfast.live.measurable import unmeasured
from holdfast.live.traced import named_tensors


def is_time_first(model: nn.Module) -> bool:
    """Whether a model keeps its sequences time first: it has recurrent or attention layers, none is `batch_first`.

    Example:
        >>> is_time_first(nn.LSTM(2, 2)), is_time_first(nn.Linear(2, 2))
        (True, False)
    """
    kinds = nn.RNNBase | nn.MultiheadAttention
    return {bool(module.batch_first) for module in model.modules() if isinstance(module, kinds)} == {False}


class Lays:
    """How the tensors of a pass lie: layers that work element by element take over what the layers before them did.

    It may follow one pass after another: tensors that come again lie as they did.

    Args:
        model: whose passes they are.
    """

    def __init__(self, model: nn.Module) -> None:
        self._time_first = is_time_first(model)
        self._inputs: dict[str, tuple[Layout, tuple[int, ...]]] = {}
        self._outputs: dict[str, tuple[Layout, tuple[int, ...]]] = {}
        self._made: dict[int, tuple[weakref.ref[Tensor], Layout]] = {}

    def given(
        self, path: str, module: nn.Module, inputs: Any, sources: Iterable[str] = ()
    ) -> list[tuple[str, Tensor, Layout]]:
        """Note what a layer that is about to run is given.

        Args:
            path: of the layer.
            module: the layer.
            inputs: its arguments.
            sources: paths of the layers that feed it, where they are known.

        Returns:
            Leaf path, tensor and layout of each tensor that has statistics.
        """
        found = []
        for leaf, tensor in named_tensors(inputs):
            layout = self._layout(module, tensor, leaf, self.inherited(tensor, sources))
            if layout is not None:
                if leaf in ("", "0"):
                    self._inputs[path] = layout, tuple(tensor.shape)
                found.append((leaf, tensor, layout))
        return found

    def gave(self, path: str, module: nn.Module, output: Any) -> list[tuple[str, Tensor, Layout]]:
        """Note what a layer gave.

        Args:
            path: of the layer.
            module: the layer.
            output: of its forward.

        Returns:
            Leaf path, tensor and layout of each tensor that has statistics.
        """
        found = []
        given = self._inputs.pop(path, None)
        for leaf, tensor in named_tensors(output):
            inherited = given[0] if given is not None and _fits(*given, tensor) else None
            layout = self._layout(module, tensor, leaf, inherited)
            if layout is not None:
                self._outputs[path] = layout, tuple(tensor.shape)
                self._made[id(tensor)] = weakref.ref(tensor), layout
                found.append((leaf, tensor, layout))
        return found

    def forget(self) -> None:
        """Drop what is known of tensors that are gone."""
        self._made = {key: made for key, made in self._made.items() if made[0]() is not None}

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
