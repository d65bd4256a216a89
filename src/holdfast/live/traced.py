"""`Outlet`: a place in compiled code that tells the tensors which pass it.

`torch.compile` traces hooks once and runs what it traced: Python state, a clock or a transfer to the host inside a hook
would break the graph or recompile it at every call. What a traced hook leaves in the graph is therefore one opaque
operation, `holdfast::observe`, whose body looks up who listens. It returns nothing and is marked as having a side
effect, or the compiler would drop it; nothing is saved for the backward pass.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

Listener = Callable[[Tensor, str, bool], object]

_LIBRARY: Any = torch.library.Library("holdfast", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "observe(Tensor x, int place, str leaf, bool grad) -> ()",
    # A CUDA graph replays kernels without running Python.
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)

# Numbers enter the key of the compiler's cache: the same program gives the same ones. None is used twice, since code
# compiled for a place that is closed may go on running.
_NUMBERS = itertools.count()
_OUTLETS: weakref.WeakValueDictionary[int, Outlet] = weakref.WeakValueDictionary()


class Outlet:
    """A place in compiled code, by the number under which the code knows it.

    Args:
        function: called as `function(tensor, leaf, grad)` under `torch.no_grad()` while the outlet is open: the tensor,
            its path in the value told, and whether gradients were enabled around the compiled code.

    Attributes:
        number: of the place.
        open: whether anybody listens; turning it costs nothing, compiled code is not traced anew.
        traced: whether compiled code tells here: then what stands in the graph must stay where it is.
    """

    __slots__ = ("__weakref__", "function", "number", "open", "process", "traced")

    def __init__(self, function: Listener) -> None:
        self.function = function
        self.number = next(_NUMBERS)
        self.open = False
        self.traced = False
        self.process = os.getpid()
        _OUTLETS[self.number] = self

    def hear(self, tensor: Tensor, leaf: str, grad: bool) -> None:
        """Hand a tensor on when somebody listens.

        Args:
            tensor: real, not a tracer's.
            leaf: its path in the value told.
            grad: whether gradients were enabled.
        """
        if self.open and os.getpid() == self.process:
            with torch.no_grad():  # an operation's own body runs with gradients on
                self.function(tensor, leaf, grad)


def named_tensors(value: Any) -> list[tuple[str, Tensor]]:
    """The tensors inside tuples, lists, mappings and dataclasses, each with its path; written so that it is traceable.

    A lone tensor has the path `""`, and so has the one in a tuple of one, which is how the arguments of a call come.

    Args:
        value: nested at will.

    Returns:
        Paths and tensors, in order.

    Example:
        >>> [path for path, _ in named_tensors((torch.zeros(1), {"mask": [None, torch.ones(1)]}))]
        ['0', '1.mask.1']
    """
    while isinstance(value, tuple | list) and len(value) == 1:
        value = value[0]
    found: list[tuple[str, Tensor]] = []
    _collect(value, "", found)
    return found


def _collect(value: Any, path: str, found: list[tuple[str, Tensor]]) -> None:
    if isinstance(value, Tensor):
        found.append((path, value))
        return
    if isinstance(value, tuple | list):
        items = [(str(place), each) for place, each in enumerate(value)]
    elif isinstance(value, Mapping):
        items = [(str(key), each) for key, each in value.items()]
    elif is_dataclass(value) and not isinstance(value, type):
        items = [(each.name, getattr(value, each.name, None)) for each in fields(value)]
    else:
        return
    for key, each in items:
        _collect(each, f"{path}.{key}" if path else key, found)


def _observe(x: Tensor, place: int, leaf: str, grad: bool) -> None:
    outlet = _OUTLETS.get(place)
    if outlet is not None:
        outlet.hear(x, leaf, grad)


def _observe_fake(x: Tensor, place: int, leaf: str, grad: bool) -> None:
    # Runs while a graph is traced.
    outlet = _OUTLETS.get(place)
    if outlet is not None:
        outlet.traced = True


_LIBRARY.impl("observe", _observe, "CompositeExplicitAutograd")
torch.library.register_fake("holdfast::observe", _observe_fake, lib=_LIBRARY)
observe = torch.ops.holdfast.observe.default
"""The operation `observe(x, place, leaf, grad)`: to be called while `torch.compile` traces, never while exporting."""
torch.fx.has_side_effect(observe)
