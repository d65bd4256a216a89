"""`repeated`: one forward pass as often as wanted, from the same state, under parameters of one's choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from holdfast.core.errors import InputError
from holdfast.core.interrupt import deferred, interruptible
from holdfast.live.hooks import all_detached
from holdfast.live.inner import inner_model
from holdfast.live.memo import Memo, Recorder, Teller, keeps_nothing
from holdfast.live.random_state import RandomState, preserved_random_state
from holdfast.live.ranks import is_sharded
from holdfast.live.replay import Call, Kept, Mode, autocast_as, cloned, plain_execution, untouched


class Repeated:
    """A recorded call of a model that can be run under other parameters; `repeated` makes one.

    Every run starts from the same buffers, plain attributes, training flags and random generators, so two runs differ
    by their parameters alone.

    Args:
        model: the plain module, within `untouched`.
        call: what it is given.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        self._model = model
        self._call = call
        now = RandomState.capture()
        given = call.random or now
        # What the call did not keep is drawn from where it stands now, and from there at every run.
        self._random = replace(given, python=given.python or now.python, numpy=given.numpy or now.numpy)
        modules = list(model.modules())
        self._places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        self._names: dict[str, str] = {}
        self._find_parameters()
        self._present: dict[str, Tensor] = {
            name: holders[0][0][holders[0][1]].detach() for name, holders in self._places.items()
        }
        self._renormalised = {
            name
            for module in modules
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
            for name, holders in self._places.items()
            if any(holder is module._parameters for holder, _ in holders)
        }
        self._listener: Recorder | Teller | None = None
        for module in modules:
            module.__dict__["forward"] = partial(self._forward, module, module.forward)
        self._kept = [Kept(module) for module in modules]
        self._writing = [kept for kept in self._kept if not keeps_nothing(kept.module)]
        self._tensors = _Tensors(modules)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The values that the model holds, by the first name of each parameter; detached, not copied."""
        return self._present

    def name_of(self, name: str) -> str:
        """The first name of a parameter.

        Args:
            name: any of its names.

        Raises:
            InputError: there is no such parameter.
        """
        if name not in self._names:
            raise InputError(
                "names of the model's parameters",
                f"{name!r}",
                "take them from: dict(model.named_parameters())",
            )
        return self._names[name]

    def run(self, values: Mapping[str, Tensor] | None = None, *, memo: Memo | None = None) -> Any:
        """Run the forward pass.

        Args:
            values: parameters that differ from those of the memo (of the model, without a memo), by any of their
                names. Of those that require a gradient, the output has a graph; take gradients before the next run,
                which puts buffers back that the graph may hold.
            memo: from `record`; calls that ended before a parameter of `values` was first used are not run but
                answered with what they gave then.

        Returns:
            What the forward returned.
        """
        base = self._present if memo is None else memo.parameters
        changed = {
            first: value for name, value in (values or {}).items() if value is not base[first := self.name_of(name)]
        }
        self._listener = None if memo is None else Teller(memo, changed)
        with torch.set_grad_enabled(any(value.requires_grad for value in changed.values())):
            return self._run({**base, **changed})

    def record(self, values: Mapping[str, Tensor] | None = None) -> Memo:
        """Run the forward pass without a graph, and keep what every call of a module gave.

        A model that changes activations in place, or that draws from Python's or NumPy's generator, is run twice: only
        at the end of the first run is it known what was changed.

        Args:
            values: parameters that differ from the model's, by any of their names.

        Returns:
            The memo, for `run`; it holds on to all activations of the pass.
        """
        parameters = {**self._present, **{self.name_of(name): value for name, value in (values or {}).items()}}
        memo = Memo({name: value.detach() if value.requires_grad else value for name, value in parameters.items()})
        for _ in range(2):
            again = self._record(memo)
            if not again:
                break
        return memo

    def _record(self, memo: Memo) -> bool:
        self._restore()
        recorder = self._listener = Recorder(self._model, memo, self._kept)
        with torch.no_grad(), recorder:
            memo.output = self._run(memo.parameters)
        return recorder.finish(self._random)

    def _run(self, parameters: Mapping[str, Tensor]) -> Any:
        self._restore()
        for name, holders in self._places.items():
            value = parameters[name]
            if name in self._renormalised:
                value = value.detach().clone().requires_grad_(value.requires_grad)
            for holder, key in holders:
                holder[key] = value
        self._random.restore()
        args, kwargs = cloned((self._call.args, dict(self._call.kwargs)))
        try:
            with autocast_as(self._call.autocast), interruptible():
                return self._model(*args, **kwargs)
        finally:
            self._listener = None

    def _restore(self) -> None:
        """Put back what a run before may have written."""
        self._tensors.restore()
        for kept in self._writing:
            kept.restore()

    def _forward(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What stands in the place of every module's own forward."""
        if self._listener is None:
            return forward(*args, **kwargs)
        return self._listener.call(module, forward, args, kwargs)

    def _find_parameters(self) -> None:
        by_identity: dict[int, str] = {}
        for path, module in self._model.named_modules(remove_duplicate=False):
            for key, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if is_sharded(parameter):
                    raise InputError(
                        "parameters that this process holds whole",
                        f"{key!r} of {path!r}, of which it holds a shard",
                        "measure on one process, before the model is sharded",
                    )
                name = f"{path}.{key}" if path else key
                first = by_identity.setdefault(id(parameter), name)
                self._names[name] = first
                place = (module._parameters, key)
                holders = self._places.setdefault(first, [])
                if not any(holder is place[0] and other == key for holder, other in holders):
                    holders.append(place)


class _Tensors:
    """The values of buffers and of tensors among plain attributes, which a forward may change in place."""

    def __init__(self, modules: list[nn.Module]) -> None:
        found: dict[int, Tensor] = {}
        self._buffers: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []
        for module in modules:
            if module._buffers:
                self._buffers.append((module._buffers, dict(module._buffers)))
            for value in (*module._buffers.values(), *module.__dict__.values()):
                if isinstance(value, Tensor) and value.grad_fn is None and not value.requires_grad:
                    found[id(value)] = value
        self._tensors = list(found.values())
        self._values = [tensor.clone() for tensor in self._tensors]
        self._versions = [tensor._version for tensor in self._tensors]

    @torch.no_grad()
    def restore(self) -> None:
        grouped: dict[Any, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        moved = [index for index, tensor in enumerate(self._tensors) if tensor._version != self._versions[index]]
        for index in moved:
            tensor = self._tensors[index]
            into, values = grouped[tensor.device, tensor.dtype]
            into.append(tensor)
            values.append(self._values[index])
        for into, values in grouped.values():
            torch._foreach_copy_(into, values)
        for index in moved:
            self._versions[index] = self._tensors[index]._version
        for present, held in self._buffers:
            present.update(held)


@contextmanager
def repeated(model: nn.Module, call: Call, *, mode: Mode = "as it was") -> Iterator[Repeated]:
    """Run a model's forward pass as often as wanted within the block, under parameters of one's choice.

    Afterwards everything is bit for bit what it was (see `replay`); gradients that are wanted are taken by
    `torch.autograd.grad`, which writes none. Compiled code runs eagerly and activation checkpointing is off.

    Args:
        model: a compiled or a distributed one is looked into.
        call: what it is given, from `record_call`.
        mode: see `replay`.

    Yields:
        The pass to repeat.

    Example:
        >>> from holdfast.live.replay import record_call
        >>> net = nn.Sequential(*[nn.Linear(1, 1, bias=False) for _ in range(3)])
        >>> with repeated(net, record_call((torch.ones(1, 1),), {})) as forward:
        ...     memo = forward.record({f"{k}.weight": torch.full((1, 1), 2.0) for k in range(3)})
        ...     last = forward.run({"2.weight": torch.full((1, 1), 5.0)}, memo=memo)  # runs the last layer only
        ...     memo.output.item(), last.item()
        (8.0, 20.0)
    """
    inner = inner_model(model)
    with ExitStack() as stack:
        stack.enter_context(all_detached())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(untouched(inner, mode=mode))
        stack.enter_context(deferred())
        stack.enter_context(preserved_random_state())
        stack.enter_context(plain_execution(compiled=False))
        stack.enter_context(_without_checkpoints())
        with interruptible():
            yield Repeated(inner, call)


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Keep activations instead of recomputing them: a recomputation would not meet the answers of the forward.

    Reentrant checkpoints also ask for an input with a graph, which an answered call does not give.
    """
    held = checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator
    checkpoint.CheckpointFunction = _Direct  # type: ignore[misc,assignment]
    checkpoint._checkpoint_without_reentrant_generator = _direct
    try:
        yield
    finally:
        checkpoint.CheckpointFunction, checkpoint._checkpoint_without_reentrant_generator = held  # type: ignore[misc]


class _Direct:
    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _direct(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield
