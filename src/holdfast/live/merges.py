"""`Merges`: where a model adds or concatenates what came along different ways, found on one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from holdfast.live.leaves import leaf_modules, passes_through
from holdfast.live.operations import operation_name
from holdfast.live.passage import Passage
from holdfast.live.tensors import storage_of, tensors_in

_ADDING = frozenset({"add", "add_"})
_JOINING = frozenset({"cat", "concat", "concatenate"})


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor of the pass, and what it was made of.

    Args:
        leaf: path of the leaf that made it; `""` for the model's input and for what an operation or a leaf that only
            hands on (see `passes_through`) made.
        operation: name of the operation that made it; `""` where a leaf did, and for the model's input.
        parents: what it was made of; parameters and constants are not among them.
        shape: of the tensor.
    """

    leaf: str
    operation: str
    parents: tuple[Value, ...] = field(repr=False)
    shape: tuple[int, ...]

    def ancestors(self) -> set[Value]:
        """The value itself and all that it was made of."""
        found: set[Value] = set()
        open_ = [self]
        while open_:
            value = open_.pop()
            if value not in found:
                found.add(value)
                open_ += value.parents
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """One of the streams that meet.

    Args:
        value: what it is made of.
        shape: as it enters the merge.
        rms: root mean square of its elements.
        spread: root mean square of its deviations from the mean over its first axis, which mostly is the sample.
    """

    value: Value
    shape: tuple[int, ...]
    rms: float
    spread: float


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """Streams that are added or concatenated.

    Args:
        kind: `"add"` or `"cat"`.
        owner: path of the innermost module in whose forward it was.
        operands: the floating ones, in their order; at least two, all different.
        value: what came out.
    """

    kind: str
    owner: str
    operands: tuple[Operand, ...]
    value: Value = field(repr=False)


class Merges(Passage):
    """Follows one replay and keeps how every tensor came about; leaves are taken as one step each.

    The tensors of the pass are kept alive until it is forgotten, so that an identity is never used twice.

    After `follow`:
        found: the merges, in the order of execution.
        calls: how often each leaf ran, by path.
        uses: what was made directly of each value.
        outputs: what the model gave.

    Example:
        >>> import torch
        >>> from holdfast.live.replay import record_call
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Linear(3, 3)
        ...     def forward(self, x):
        ...         return x + self.fc(x)
        >>> model = Block()
        >>> merges = Merges(model)
        >>> _ = merges.follow(model, record_call((torch.ones(2, 3),), {}))
        >>> [(merge.kind, [operand.value.leaf for operand in merge.operands]) for merge in merges.found]
        [('add', ['', 'fc'])]
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._leaves = {module: path for path, module in leaf_modules(model)}
        self.found: list[Merge] = []
        self.calls: dict[str, int] = {}
        self.uses: dict[Value, list[Value]] = {}
        self.outputs: tuple[Value, ...] = ()
        self._values: dict[int, tuple[Tensor, Value]] = {}
        self._by_storage: dict[int, Value] = {}
        self._leaf: nn.Module | None = None
        self._given: dict[int, int] = {}  # versions of the running leaf's inputs
        self._parents: tuple[Value, ...] = ()

    # modules

    def entered(self, path: str, module: nn.Module, inputs: Any) -> None:
        """Note what a leaf is given."""
        if len(self.stack) == 1:
            for tensor in tensors_in(inputs):
                self._keep(tensor, Value("", "", (), tuple(tensor.shape)))
        if self._leaf is None and module in self._leaves:
            self._leaf = module
            tensors = tensors_in(inputs)
            self._given = {id(tensor): tensor._version for tensor in tensors}
            self._parents = self._known(tensors)

    def left(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """What a leaf gave was made by it; what it only handed on keeps its origin."""
        if module is self._leaf:
            self._finish(module, output)
        if len(self.stack) == 1:
            self.outputs = self._known(tensors_in(output))

    def _finish(self, module: nn.Module, output: Any) -> None:
        self._leaf = None
        leaf = "" if passes_through(module) else self._leaves[module]
        if leaf:
            self.calls[leaf] = self.calls.get(leaf, 0) + 1
        new = [each for each in tensors_in(output) if self._given.get(id(each)) != each._version]
        if new and (leaf or self._parents):
            self._make(new, leaf, "", self._parents)

    # operations

    def before(self, function: Callable[..., Any], inputs: Any) -> Any:
        """Note what an operation is given, and measure what is about to merge: it may be overwritten."""
        if self._leaf is not None:
            return None
        tensors = tensors_in(inputs)
        operands: list[Operand] = []
        if operation_name(function) in _ADDING | _JOINING:
            known = {value: tensor for tensor in tensors if (value := self._value(tensor)) is not None}
            operands = [_operand(value, tensor) for value, tensor in known.items() if tensor.is_floating_point()]
        return [(tensor, tensor._version) for tensor in tensors], self._known(tensors), operands

    def after(self, function: Callable[..., Any], inputs: Any, output: Any, memo: Any) -> None:
        """Note what an operation made."""
        if memo is None:
            return
        versions, parents, operands = memo
        given = {id(tensor): version for tensor, version in versions}
        new = [each for each in tensors_in(output) if given.get(id(each)) != each._version]
        new += [tensor for tensor, version in versions if tensor._version != version]
        if not new or not parents:
            return
        name = operation_name(function)
        value = self._make(new, "", name, parents)
        if len(operands) > 1:
            kind = "cat" if name in _JOINING else "add"
            self.found.append(Merge(kind, self.stack[-1][0], tuple(operands), value))

    # values

    def _make(self, tensors: Sequence[Tensor], leaf: str, operation: str, parents: tuple[Value, ...]) -> Value:
        value = Value(leaf, operation, parents, tuple(tensors[0].shape))
        for parent in parents:
            self.uses.setdefault(parent, []).append(value)
        for tensor in tensors:
            self._keep(tensor, value)
        return value

    def _keep(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = tensor, value
        self._by_storage[storage_of(tensor)] = value

    def _known(self, tensors: Iterable[Tensor]) -> tuple[Value, ...]:
        """The distinct values of tensors, in their order."""
        return tuple(dict.fromkeys(value for tensor in tensors if (value := self._value(tensor)) is not None))

    def _value(self, tensor: Tensor) -> Value | None:
        if id(tensor) in self._values:
            return self._values[id(tensor)][1]
        # An operation that could not be followed (one of C++) may have wrapped memory that is known.
        return None if isinstance(tensor, nn.Parameter) else self._by_storage.get(storage_of(tensor))


def _operand(value: Value, tensor: Tensor) -> Operand:
    if not tensor.numel() or not tensor.ndim:
        return Operand(value, tuple(tensor.shape), 0.0, 0.0)
    wide = tensor.detach().double()
    rms, spread = (each.square().mean().sqrt().item() for each in (wide, wide - wide.mean(0)))
    return Operand(value, tuple(tensor.shape), rms, spread)
