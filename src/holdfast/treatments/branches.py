"""Residual branches: which layers an addition brings to the stream that goes past them, found on one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from holdfast.live.merges import Merge, Merges, Operand, Value
from holdfast.live.operations import SHAPING
from holdfast.treatments.change import Batch, call_of, rerun
from holdfast.treatments.places import ACTIVATIONS, NORMS, WEIGHTED

# f(0) = 0: a branch that is scaled down in front of one of these is scaled down behind it, exactly or nearly.
_ODD_MODULES = tuple(set(ACTIVATIONS) - {nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid})
ODD_FUNCTIONS = frozenset(
    {"relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu", "gelu", "silu"}
    | {"mish", "softsign", "hardtanh", "hardswish", "tanh", "tanh_"}
)
_LINEAR = SHAPING | {"", "add", "add_", "sub", "mul", "mul_", "div", "div_", "neg", "mean", "sum"}
_DROPS = frozenset({"DropPath", "StochasticDepth"})
"""Classes of other packages that drop a whole branch at random."""


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """What one addition brings to a residual stream.

    Args:
        owner: path of the module in whose forward it is added; `""` is the model.
        leaves: paths of the leaves that it goes through.
        ends: paths of those that set its scale: its last layers with a matrix, or the normalisers behind them.
        through: what stands between those and the addition: names of functions, classes of activations.
        share: RMS of the branch over that of the stream to which it is added, on the batch.
        problem: why the ends are not known; `""` when they are.
    """

    owner: str
    leaves: frozenset[str]
    ends: tuple[str, ...]
    through: tuple[str, ...]
    share: float
    problem: str = ""


def followed(model: nn.Module, batch: Batch) -> Merges:
    """Follow the model on a batch; nothing is changed by it.

    Args:
        model: the model.
        batch: what it is called with.

    Returns:
        The merges of its streams.

    Raises:
        InputError: the model does not run on it.
    """
    call, merges = call_of(batch), Merges(model)
    rerun(model, call)  # refuses with words what the model does not take
    merges.follow(model, call)
    return merges


def branches(model: nn.Module, merges: Merges) -> list[Branch]:
    """The residual branches of a followed pass.

    Args:
        model: the model.
        merges: from `followed`.

    Returns:
        One for each residual addition, in the order of execution.
    """
    modules = dict(model.named_modules())
    return [_branch(merge, branch, shortcut, modules) for merge, branch, shortcut in residual(model, merges)]


def residual(model: nn.Module, merges: Merges) -> list[tuple[Merge, Operand, Operand]]:
    """The residual additions of a followed pass.

    An addition of two tensors of one shape is residual when both come from a common value and one of them has passed
    no layer with a matrix since. Where a model has such additions, those whose shortcut has passed one such layer and
    whose branch more than one count too (the projections of a ResNet).

    Args:
        model: the model.
        merges: from `followed`.

    Returns:
        Each addition with its branch and its shortcut, in the order of execution.
    """
    modules = dict(model.named_modules())
    found: list[tuple[Merge, Operand, Operand, bool]] = []
    for merge in merges.found:
        pair = _branch_and_shortcut(merge, modules)
        if pair is not None:
            found.append((merge, *pair))
    if all(projected for *_, projected in found):
        return []
    return [each[:3] for each in found]


def has_matrix(module: nn.Module) -> bool:
    """Whether a leaf multiplies by a matrix of its own, subclasses and foreign layers included."""
    return any(each.ndim > 1 for each in module.parameters())


def _branch_and_shortcut(merge: Merge, modules: Mapping[str, nn.Module]) -> tuple[Operand, Operand, bool] | None:
    """The branch, the shortcut, and whether that is a projection; `None` when the addition is not residual."""
    if merge.kind != "add" or len(merge.operands) != 2 or merge.operands[0].shape != merge.operands[1].shape:
        return None
    first, second = (operand.value.ancestors() for operand in merge.operands)
    if not first & second:
        return None
    counts = [
        sum(bool(value.leaf) and has_matrix(modules[value.leaf]) for value in own)
        for own in (first - second, second - first)
    ]
    branch = 0 if counts[0] > counts[1] else 1
    if min(counts) > 1 or max(counts) <= min(counts):
        return None
    return merge.operands[branch], merge.operands[1 - branch], min(counts) == 1


def _branch(merge: Merge, branch: Operand, shortcut: Operand, modules: Mapping[str, nn.Module]) -> Branch:
    shared = shortcut.value.ancestors()
    leaves = frozenset(value.leaf for value in branch.value.ancestors() - shared if value.leaf)
    share = branch.rms / shortcut.rms if shortcut.rms else float("inf")
    ends: dict[str, None] = {}
    through: dict[str, None] = {}
    for kind, what in _back(branch.value, shared, modules):
        if kind == "problem":
            return Branch(merge.owner, leaves, (), (), share, what)
        (ends if kind == "end" else through)[what] = None
    return Branch(merge.owner, leaves, tuple(ends), tuple(through), share)


def _back(start: Value, shared: set[Value], modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    """From the addition back to what sets the branch's scale: pairs of `"end"`, `"through"` or `"problem"` and what."""
    open_, seen = [start], set[Value]()
    while open_:
        value = open_.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in shared:
            yield "problem", "a part of it reaches the addition past its layers"
            return
        if value.leaf:
            module = modules[value.leaf]
            if type(module) in WEIGHTED or type(module) is nn.MultiheadAttention or isinstance(module, NORMS):
                yield "end", value.leaf
                continue
            if not isinstance(module, _ODD_MODULES) and type(module).__name__ not in _DROPS:
                yield "problem", f"{value.leaf} ({type(module).__name__}) stands at its end"
                return
            if type(module).__name__ not in _DROPS:
                yield "through", type(module).__name__
        elif value.operation in ODD_FUNCTIONS:
            yield "through", value.operation
        elif value.operation not in _LINEAR:
            yield "problem", f"{value.operation} stands at its end"
            return
        elif value.operation in ("mul", "mul_", "div", "div_") and len(value.parents) > 1:
            yield "problem", "its output is a product of two"
            return
        open_ += value.parents
