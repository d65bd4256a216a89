"""`Streams`: which models of a process are watched, for which optimisers, and under which names in the run."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from holdfast.live.discover import models_of, own_part, stepped
from holdfast.live.inner import inner_model
from holdfast.monitor.watch import Watch

MOST = 16
"""Streams of one run. A loop that builds a hundred models is known well enough after these."""

OpenWatch = Callable[[nn.Module, Optimizer, str], Watch]


@dataclass(eq=False)
class _Stream:
    """One model under one optimiser; keeps neither alive.

    Args:
        whole: the outermost model.
        optimizer: the one for which it was opened.
        parameters: identities of those it steps.
    """

    whole: weakref.ref[nn.Module]
    optimizer: weakref.ref[Optimizer]
    parameters: frozenset[int]
    name: str = ""
    part: weakref.ref[nn.Module] | None = None
    watch: weakref.ref[Watch] | None = None

    @property
    def steps(self) -> int:
        """Steps seen so far; 0 of a watch that is gone, too."""
        watch = None if self.watch is None else self.watch()
        return 0 if watch is None else watch.step


class Streams:
    """Opens a watch for every model that an optimiser steps, and names it.

    - One optimiser, one model: the whole model, named `net`.
    - An optimiser of several models: a stream for each, the largest first.
    - Several optimisers of one model: where each has a part of the model to itself, a stream for each part; otherwise
      the whole model is watched once for each of them.
    - A later optimiser of the same parameters continues the stream.

    Until a stream has seen a step, it may still be narrowed or renamed by the optimisers that follow.

    Args:
        open_watch: `(model, optimizer, name)` → a watch.
        registry: modules that the garbage collector may not list.
    """

    def __init__(self, open_watch: OpenWatch, registry: Iterable[nn.Module] = ()) -> None:
        self._open_watch = open_watch
        self._registry = registry
        self._streams: list[_Stream] = []
        self._names: set[str] = set()  # of streams with steps
        self.left_out = 0
        """Models beyond the most streams of a run."""

    def add(self, optimizer: Optimizer) -> bool:
        """Watch what an optimiser steps.

        Args:
            optimizer: not seen before.

        Returns:
            Whether a model was found.
        """
        models = models_of(optimizer, self._registry)
        wanted = stepped(optimizer)
        for model in models:
            watch = self._continued(model, wanted)
            if watch is not None:
                watch.follow(optimizer)
            elif len(self._streams) < MOST:
                self._streams.append(_Stream(weakref.ref(model), weakref.ref(optimizer), wanted))
            else:
                self.left_out += 1
        self._arrange()
        return bool(models)

    def close(self) -> None:
        """End all watches."""
        for each in self._streams:
            watch = None if each.watch is None else each.watch()
            if watch is not None:
                watch.close()

    def _continued(self, model: nn.Module, wanted: frozenset[int]) -> Watch | None:
        for each in self._streams:
            watch = None if each.watch is None else each.watch()
            if watch is not None and each.whole() is model and each.parameters & wanted:
                return watch
        return None

    def _arrange(self) -> None:
        """Give every stream without steps its model and its name, and open it anew where they changed."""
        pending = []
        for each in self._streams:
            if each.steps:
                self._names.add(each.name)
            elif each.whole() is not None and each.optimizer() is not None:
                pending.append(each)
        taken = set(self._names)
        for each, (path, model) in zip(pending, [self._place(each, pending) for each in pending], strict=True):
            alone = len(pending) == 1 and not taken
            name = "net" if alone else _unique(path.rpartition(".")[2] or _name(model), taken)
            taken.add(name)
            self._open(each, model, name)

    def _place(self, stream: _Stream, pending: list[_Stream]) -> tuple[str, nn.Module]:
        """What to watch for a stream: the whole model, or its own part."""
        whole = stream.whole()
        assert whole is not None
        beside = [each for each in self._streams if each.whole() is whole]
        if len(beside) == 1 or any(each not in pending for each in beside):
            return "", whole
        own = {
            id(each): own_part(
                whole, each.parameters, frozenset().union(*(other.parameters for other in beside if other is not each))
            )
            for each in beside
        }
        place = own[id(stream)]
        return ("", whole) if place is None or None in own.values() else place

    def _open(self, stream: _Stream, model: nn.Module, name: str) -> None:
        optimizer = stream.optimizer()
        assert optimizer is not None
        watch = None if stream.watch is None else stream.watch()
        if watch is not None:
            if stream.name == name and stream.part is not None and stream.part() is model:
                return
            watch.close()
        stream.name, stream.part = name, weakref.ref(model)
        stream.watch = weakref.ref(self._open_watch(model, optimizer, name))


def _name(model: nn.Module) -> str:
    """The model's class; of a class of torch's own, the script's global variable that holds it, if any."""
    kind = type(model)
    if not kind.__module__.startswith("torch."):
        return kind.__name__
    for name, value in list(vars(sys.modules["__main__"]).items()):
        if isinstance(value, nn.Module) and not name.startswith("_") and inner_model(value) is model:
            return name
    return kind.__name__


def _unique(name: str, taken: set[str]) -> str:
    number = 2
    wanted = name
    while name in taken:
        name = f"{wanted}-{number}"
        number += 1
    return name
