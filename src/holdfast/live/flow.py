"""`Flow`: which layer feeds which, and what runs without a layer, found on one batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from holdfast.core.structure import FunctionalCall
from holdfast.live.leaves import leaf_modules, passes_through
from holdfast.live.operations import SHAPING, operation_name
from holdfast.live.passage import Passage
from holdfast.live.tensors import storage_of, tensors_in


class Flow(Passage):
    """Follows one replay and keeps, for every tensor, the leaves that it came from.

    No tensor is kept alive: a pass needs the memory of a forward without gradients. An identity may be used twice, so
    it counts only while the tensor it was noted for lives; the memory's own is kept from being used again.

    After `follow`:
        order: paths of the leaves, each at its first call.
        edges: `(source, target)` leaf paths; `""` is the model's input.
        calls: how often each module ran.
        shapes: of the first tensor that each leaf was given, at its first call.
        functional: operations that no module of torch wraps, each `(name, owner, producer)` once.
        parameters: identities of each module's own parameters, by path, as they were in the pass.
        used: for each parameter that an operation took, by identity, the paths of the modules in whose forward it was.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._leaves = {module: path for path, module in leaf_modules(model)}
        self.order: list[str] = []
        self.edges: list[tuple[str, str]] = []
        self.calls: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.functional: list[FunctionalCall] = []
        self.parameters: dict[str, list[int]] = {}
        self.used: dict[int, set[str]] = {}
        self._origins: dict[int, _Origin] = {}
        self._by_storage: dict[int, list[_Origin]] = {}
        self._storages: dict[int, Any] = {}  # weak: while it is referred to, another memory has another number
        self._seen: set[Any] = set()
        self._leaf: nn.Module | None = None  # the one that runs now
        self._places: dict[str, int] = {}
        self._given: dict[int, int] = {}  # the versions of its inputs

    # modules

    def entered(self, path: str, module: nn.Module, inputs: Any) -> None:
        """Count the call; draw the edges into a leaf."""
        if len(self.stack) == 1:
            # Asked now: a replay puts clones in the place of parameters that a forward would renormalise.
            self.parameters = {
                name: [id(each) for each in part._parameters.values() if each is not None]
                for name, part in module.named_modules()
            }
            for tensor in tensors_in(inputs):
                self._set(tensor, frozenset({""}), None)
        self.calls[path] = self.calls.get(path, 0) + 1
        if self._leaf is not None or module not in self._leaves:
            return
        self._leaf = module
        self._given = {id(tensor): tensor._version for tensor in tensors_in(inputs)}
        if path not in self._seen:
            self._seen.add(path)
            self._places[path] = len(self.order)
            self.order.append(path)
            for tensor in tensors_in(inputs)[:1]:
                if not tensor.is_nested:  # which has no shape of whole numbers
                    self.shapes[path] = tuple(tensor.shape)
        if not passes_through(module):
            for source in sorted(self._sources(tensors_in(inputs)), key=self._place):
                if (source, path) not in self._seen:
                    self._seen.add((source, path))
                    self.edges.append((source, path))

    def left(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Mark what a leaf gave as its own."""
        if module is not self._leaf:
            return
        self._leaf = None
        if passes_through(module):
            return
        for tensor in tensors_in(output):
            # What was handed on as it is keeps its origin: the shortcut beside it is not the leaf's output.
            if self._given.get(id(tensor)) != tensor._version:
                self._set(tensor, frozenset({path}), path)

    # operations

    def before(self, function: Callable[..., Any], inputs: Any) -> Any:
        """Keep the version of each tensor, so that a change in place is noticed."""
        return [(tensor, tensor._version) for tensor in tensors_in(inputs)]

    def after(self, function: Callable[..., Any], inputs: Any, output: Any, memo: Any) -> None:
        """Hand the origin of an operation's inputs on to its output."""
        name = operation_name(function)
        path = self.stack[-1][0]
        tensors = [tensor for tensor, _ in memo]
        if name:
            for tensor in tensors:
                if isinstance(tensor, nn.Parameter):
                    self.used.setdefault(id(tensor), set()).add(path)
        results = tensors_in(output)
        changed = [tensor for tensor, version in memo if tensor._version != version]
        if not results and not changed:
            return
        sources = self._sources(tensors)
        if not sources or name.endswith("_like") or name.startswith("new_"):
            return
        producer = next(filter(None, map(self._producer, tensors)), None)
        plain = name == "" or name in SHAPING or (self._leaf is not None and passes_through(self._leaf))
        for tensor in changed:
            for origin in self._by_storage.get(storage_of(tensor), ()):
                origin.sources, origin.producer = sources, None
            self._set(tensor, sources, None)
        for tensor in results:
            # A mask tells where, not what.
            if tensor.dtype is not torch.bool and not any(tensor is each for each in changed):
                self._set(tensor, sources, producer if plain else None)
        if not plain and not self._wrapped():
            call = FunctionalCall(name, path, producer)
            if call not in self._seen:
                self._seen.add(call)
                self.functional.append(call)

    def _wrapped(self) -> bool:
        """Whether the operation belongs to a leaf of torch's own, whose name tells what it does."""
        return self._leaf is not None and type(self._leaf).forward.__module__.startswith("torch.")

    # origins

    def _place(self, source: str) -> int:
        """Place in the order of execution, the model's input first."""
        return self._places.get(source, -1)

    def _producer(self, tensor: Tensor) -> str | None:
        origin = self._origin(tensor)
        return None if origin is None else origin.producer

    def _origin(self, tensor: Tensor) -> _Origin | None:
        origin = self._origins.get(id(tensor))
        return origin if origin is not None and origin.tensor() is tensor else None

    def _sources(self, tensors: list[Tensor]) -> frozenset[str]:
        found: set[str] = set()
        for tensor in tensors:
            origin = self._origin(tensor)
            if origin is not None:
                found |= origin.sources
            elif not isinstance(tensor, nn.Parameter):
                # An operation that could not be followed (one of C++) may have wrapped memory that is known.
                for other in self._by_storage.get(storage_of(tensor), ()):
                    found |= other.sources
        return frozenset(found)

    def _set(self, tensor: Tensor, sources: frozenset[str], producer: str | None) -> None:
        before, number = self._origin(tensor), storage_of(tensor)
        if before is not None and before.storage == number:
            before.sources, before.producer = sources, producer
            return
        origin = self._origins[id(tensor)] = _Origin(weakref.ref(tensor), number, sources, producer)
        self._by_storage.setdefault(number, []).append(origin)
        if number not in self._storages:
            # What has no memory of its own (a sparse tensor) is kept itself: its number is its identity.
            self._storages[number] = tensor if number < 0 else StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class _Origin:
    tensor: weakref.ref[Tensor]
    storage: int
    sources: frozenset[str]
    producer: str | None  # the leaf whose output it is, perhaps in another shape
