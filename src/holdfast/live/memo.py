"""`Memo`: what every module call of a forward pass gave, to be given again where nothing before it has changed.

A call depends on nothing that comes after it. So a call that *ended* before the first use of any changed parameter
would give again what it gave in the recording, and need not run: its recorded output is handed out, the random
generators and what it wrote to buffers and attributes are put to where it left them. Everything else runs, the code
between the modules included, so any graph will do: branches, concatenations, shared and bare parameters, recurrence.

A call is never answered, and runs again with its parts answered where they can be, if
- it changed one of its arguments in place, or what it gave shares memory with one or with a buffer (an in-place ReLU, a
  view): who holds the one would miss changes of the other;
- it or a call inside of it was given anything else than tensors and plain values (another object may have been changed
  by it), or changed a list, set or dictionary of its module;
- a module inside of it has hooks of the user's, or it gave something that cannot be given again.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from holdfast.core.errors import InputError
from holdfast.live.leaves import leaf_modules
from holdfast.live.operations import operation_name
from holdfast.live.random_state import RandomState
from holdfast.live.replay import Kept, same_content
from holdfast.live.tensors import storage_of, tensors_in

_PLAIN = (Tensor, int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, slice, enum.Enum)

# Looks at a parameter that tell nothing of its values.
_LOOKS = frozenset(
    {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "element_size", "storage_offset"}
    | {"is_floating_point", "is_complex", "len", "hash", "repr", "get_device"}
)

# What a layer keeps for itself and nobody reads in a forward: the flat list of an RNN's weights, which it makes anew
# when they are others, and our normalisers' telemetry.
_PRIVATE = frozenset({"_flat_weights", "_flat_weight_refs"})


@dataclass(slots=True, eq=False)
class Answer:
    """One call of a module.

    Args:
        module: which.
        entered: how many parameters had been used when it began.
        left: how many had been used when it ended.
        after: number of the first call that began after it had ended.
        given: the leaves of the output; tensors that are changed in place later are copies.
        changed: the places of these among the leaves.
        spec: how the leaves make the output.
        random: the generators at its end; `None` where it did not draw.
        writes: what it wrote to buffers and attributes.
        barred: whether it must run again.
        bars: whether the calls around it must, too.
    """

    module: nn.Module
    entered: int
    left: int = 0
    after: int = 0
    given: tuple[Any, ...] = ()
    changed: tuple[int, ...] = ()
    spec: TreeSpec | None = None
    random: RandomState | None = None
    writes: tuple[_Write, ...] = ()
    barred: bool = True  # until it has ended: one that raised gave nothing
    bars: bool = False

    def output(self) -> Any:
        """What the call gave, in fresh containers."""
        leaves = list(self.given)
        for place in self.changed:
            leaves[place] = leaves[place].clone()
        return tree_unflatten(leaves, self.spec) if self.spec is not None else leaves[0]


@dataclass(slots=True, eq=False)
class Memo:
    """What a forward pass gave under certain parameters, call by call.

    Args:
        parameters: the values it ran with, by first name.
        order: names in the order in which they were first used; a name that is not there was not seen in use.
        calls: in the order in which they began.
        output: what the pass returned.
        mutated: numbers of the calls whose output was changed in place after they had ended.
        draws: whether the pass draws from Python's or NumPy's generator.
    """

    parameters: Mapping[str, Tensor]
    order: list[str] = field(default_factory=list)
    calls: list[Answer] = field(default_factory=list)
    output: Any = None
    mutated: frozenset[int] = frozenset()
    draws: bool = False

    def first_use(self, names: Mapping[str, Tensor]) -> int:
        """How many parameters were used before the first of some; -1 when one of them was never seen in use.

        Args:
            names: first names.
        """
        places = {name: place for place, name in enumerate(self.order)}
        return min((places.get(name, -1) for name in names), default=len(self.order))


class Recorder(TorchFunctionMode):
    """Fills a memo during a pass.

    Args:
        model: the plain module.
        memo: with its parameters; what it held of an earlier pass is dropped, but for which outputs change in place.
        kept: the modules' attributes before the pass.
    """

    def __init__(self, model: nn.Module, memo: Memo, kept: list[Kept]) -> None:
        super().__init__()
        self._memo = memo
        memo.order, memo.calls = [], []
        self._names = {id(value): name for name, value in memo.parameters.items()}
        self._seen: set[str] = set()
        self._leaves = {module for _, module in leaf_modules(model)}
        self._states = {each.module: _State(each) for each in kept}
        self._own = {storage_of(each) for state in self._states.values() for each in state.tensors}
        self._writes: list[_Write] = []
        self._watched: list[tuple[int, Tensor, int]] = []  # outputs: call, tensor, version at the call's end

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = operation_name(func)
        if name not in _LOOKS and (name or tensors_in(output)):
            self._use(tensors_in((args, kwargs)))
        return output

    def _use(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            name = self._names.get(id(tensor))
            if name is not None and name not in self._seen:
                self._seen.add(name)
                self._memo.order.append(name)

    def call(self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Run a module's forward and keep what it gave."""
        memo = self._memo
        number = len(memo.calls)
        answer = Answer(module, len(memo.order))
        memo.calls.append(answer)
        first_write = len(self._writes)
        leaves = list(args) if not kwargs and all(map(_is_leaf, args)) else tree_leaves((args, kwargs))
        versions = [each._version for each in leaves if isinstance(each, Tensor)]
        random = RandomState.capture(python=memo.draws, numpy=memo.draws)
        output = forward(*args, **kwargs)
        if module in self._leaves:  # a kernel of its own may have used what no operation of torch was seen to take
            self._use(list(module.parameters()))
        answer.after, answer.left = len(memo.calls), len(memo.order)
        within = memo.calls[number + 1 :]
        plain = all(isinstance(each, _PLAIN) for each in leaves)
        answer.bars = not (self._states[module].note(self._writes) and plain) or any(each.bars for each in within)
        answer.writes = tuple(self._writes[first_write:])
        now = RandomState.capture(python=memo.draws, numpy=memo.draws)
        answer.random = None if _same_torch(random, now) and _same_others(random, now) else now
        hooked = any(_has_hooks(each.module) for each in within)
        if not (answer.bars or hooked or _touched(leaves, versions, args, kwargs)):
            self._keep(number, answer, output, leaves)
        return output

    def _keep(self, number: int, answer: Answer, output: Any, arguments: list[Any]) -> None:
        given, spec = ([output], None) if isinstance(output, Tensor) else tree_flatten(output)
        held = self._own | {storage_of(each) for each in arguments if isinstance(each, Tensor)}
        storages = {place: storage_of(each) for place, each in enumerate(given) if isinstance(each, Tensor)}
        if not all(isinstance(each, _PLAIN) for each in given) or not held.isdisjoint(storages.values()):
            return
        answer.barred = False
        if number in self._memo.mutated:
            answer.changed = tuple(storages)
            for place in storages:
                given[place] = given[place].clone()
        else:
            self._watched += [(number, given[place], given[place]._version) for place in storages]
        answer.given, answer.spec = tuple(given), spec

    def finish(self, start: RandomState) -> bool:
        """Look back on the whole pass.

        Args:
            start: the generators before it.

        Returns:
            Whether it has to be recorded once more, now that more is known.
        """
        memo = self._memo
        if any(state.moved for state in self._states.values()):  # by another module's hand: nobody knows when
            for answer in memo.calls:
                answer.barred = True
        mutated = memo.mutated | {number for number, tensor, version in self._watched if tensor._version != version}
        draws = memo.draws or not _same_others(start, RandomState.capture())
        again = (mutated, draws) != (memo.mutated, memo.draws)
        memo.mutated, memo.draws = mutated, draws
        return again


class Teller:
    """Answers the calls of a pass from a memo, as long as nothing changed has been used.

    Args:
        memo: what was recorded.
        changed: the parameters that differ from those of the recording, by first name.
    """

    def __init__(self, memo: Memo, changed: Mapping[str, Tensor]) -> None:
        self._calls = memo.calls
        self._same = memo.first_use(changed)
        self._next = 0

    def call(self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Answer a call, or run it."""
        if self._next >= len(self._calls) or self._calls[self._next].entered > self._same:
            self._next = len(self._calls)
            return forward(*args, **kwargs)
        answer = self._calls[self._next]
        if answer.module is not module:
            raise InputError(
                "a forward pass that calls the same modules when it is repeated",
                f"one that called {type(module).__name__} instead of {type(answer.module).__name__}",
                "fix the seeds of all random generators of your own",
            )
        if answer.left > self._same or answer.barred:
            self._next += 1
            return forward(*args, **kwargs)
        self._next = answer.after
        if answer.random is not None:
            answer.random.restore()
        for write in answer.writes:
            write.apply()
        return answer.output()


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    """A buffer or an attribute that a call left with a new value."""

    holder: dict[str, Any]
    name: str
    value: Any
    in_place: bool

    def apply(self) -> None:
        if self.in_place:
            self.holder[self.name].copy_(self.value)
        else:
            self.holder[self.name] = self.value.clone() if isinstance(self.value, Tensor) else self.value


class _State:
    """The attributes and buffers of one module as they stood after its last call."""

    def __init__(self, kept: Kept) -> None:
        self._module = kept.module
        own = (kept.module._parameters, kept.module._buffers, kept.module._modules)
        self._contents = [pair for pair in kept.contents if not any(pair[0] is each for each in own)]
        self._drawing = bool(kept.generators)  # a generator of its own, whose state cannot be compared
        self._plain = keeps_nothing(kept.module)
        ours = type(kept.module).__module__.startswith("holdfast.")
        self._private = _PRIVATE | {"_kept", "_listened", "_pool"} if ours else _PRIVATE
        self._last = self._look()

    @property
    def tensors(self) -> list[Tensor]:
        """Its buffers, and tensors among its attributes, which each run finds as they were."""
        return [value for value, _ in self._last.values() if isinstance(value, Tensor)]

    def note(self, writes: list[_Write]) -> bool:
        """Write down what changed since; whether it can be put there again by an assignment or a copy."""
        last, self._last = self._last, self._look()
        for key, (value, version) in self._last.items():
            before, then = last.get(key, (_MISSING, -1))
            if value is not before or version != then:
                held = value.detach().clone() if isinstance(value, Tensor) and value.grad_fn is None else value
                holder = self._module._buffers if key[0] else self._module.__dict__
                writes.append(_Write(holder, key[1], held, value is before))
        return not (self._drawing or last.keys() - self._last.keys() or self._contents_changed)

    @property
    def moved(self) -> bool:
        """Whether anything changed since its last call, by another module's hand."""
        now = self._look()
        return now.keys() != self._last.keys() or any(
            value is not self._last[key][0] or version != self._last[key][1] for key, (value, version) in now.items()
        )

    @property
    def _contents_changed(self) -> bool:
        return not all(same_content(value, content) for value, content in self._contents)

    def _look(self) -> dict[tuple[bool, str], tuple[Any, int]]:
        module = self._module
        found = {(True, name): (value, _version(value)) for name, value in module._buffers.items()}
        if self._plain:
            return found
        for name, value in module.__dict__.items():
            if name not in self._private:
                found[False, name] = (value, _version(value))
        return found


_MISSING = object()


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else -1


def _same_torch(a: RandomState, b: RandomState) -> bool:
    return torch.equal(a.torch_cpu, b.torch_cpu) and all(map(torch.equal, a.torch_cuda, b.torch_cuda))


def _same_others(a: RandomState, b: RandomState) -> bool:
    """Whether Python's and NumPy's generators stand alike."""
    if a.python != b.python or (a.numpy is None) != (b.numpy is None):
        return False
    return a.numpy is None or all(
        bool((x == y).all() if hasattr(x, "all") else x == y) for x, y in zip(a.numpy, b.numpy, strict=True)
    )


def _touched(leaves: list[Any], versions: list[int], args: tuple[Any, ...], kwargs: Any) -> bool:
    """Whether a call changed its arguments, or the lists and dictionaries among them."""
    if len(leaves) != len(args) or kwargs:
        after = tree_leaves((args, kwargs))
        if len(after) != len(leaves) or any(a is not b for a, b in zip(leaves, after, strict=True)):
            return True
    return versions != [each._version for each in leaves if isinstance(each, Tensor)]


def _is_leaf(value: Any) -> bool:
    return value is None or isinstance(value, Tensor | int | float)


def keeps_nothing(module: nn.Module) -> bool:
    """Whether a forward is known to write nothing to a module but its buffers: torch's own layers, without hooks.

    Asking all modules after each run would cost 3 µs for each, a tenth of a small network's pass.

    Args:
        module: any.
    """
    own = type(module).__module__.startswith("torch.nn.modules.") and not isinstance(module, nn.RNNBase)
    return own and not _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
