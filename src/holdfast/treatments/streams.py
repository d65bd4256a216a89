"""Streams that meet in an addition or a concatenation: where each comes from, and which normaliser fits there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from holdfast.core.errors import SurgeryError
from holdfast.live.merges import Merge, Merges, Operand, Value
from holdfast.live.operations import SHAPING
from holdfast.live.surgery import check_place
from holdfast.treatments.branches import ODD_FUNCTIONS, residual
from holdfast.treatments.places import ACTIVATIONS, NORMS, WEIGHTED

_POOLS = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)
_HANDS_ON = SHAPING | ODD_FUNCTIONS | {""}


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """Streams that meet, none of which is another's shortcut.

    Args:
        kind: `"add"` or `"cat"`.
        owner: path of the module in whose forward they meet; `""` is the model.
        streams: all of them; additions of additions are one meeting.
        into: paths of the leaves that are fed with what comes out.
    """

    kind: str
    owner: str
    streams: tuple[Operand, ...]
    into: frozenset[str]

    @property
    def ratio(self) -> float:
        """The greatest RMS of a stream over the least; infinite when one is zero."""
        sizes = [stream.rms for stream in self.streams]
        return max(sizes) / min(sizes) if min(sizes) else float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class Tap:
    """The leaf behind which a stream can be normalised.

    Args:
        leaf: its path.
        shape: of what it gives.
        features_last: whether its features are on the last axis; else they are on axis 1.
    """

    leaf: str
    shape: tuple[int, ...]
    features_last: bool

    @property
    def width(self) -> int:
        """How many features it gives."""
        return self.shape[-1] if self.features_last else self.shape[1]


def meetings(model: nn.Module, merges: Merges) -> list[Meeting]:
    """The meetings of a followed pass; residual additions are none.

    Args:
        model: the model.
        merges: from `branches.followed`.

    Returns:
        The meetings, in the order of execution.
    """
    shortcuts = {merge for merge, _, _ in residual(model, merges)}
    made = {merge.value: merge for merge in merges.found if merge not in shortcuts}
    inner = {
        operand.value
        for merge in made.values()
        for operand in merge.operands
        if operand.value in made and _continues(made[operand.value], merge, merges)
    }
    return [
        Meeting(merge.kind, merge.owner, tuple(_streams(merge, made, inner)), frozenset(_fed(value, merges)))
        for value, merge in made.items()
        if value not in inner
    ]


def tap(model: nn.Module, merges: Merges, stream: Operand) -> Tap | str:
    """Where a stream can be normalised before it meets the others.

    Args:
        model: the model.
        merges: from `branches.followed`.
        stream: one of a meeting.

    Returns:
        The last leaf on its way, or the reason why no normaliser can stand behind it.
    """
    modules = dict(model.named_modules())
    value = stream.value
    needed = set[Value]().union(*(output.ancestors() for output in merges.outputs))
    while True:
        if not value.leaf and not value.parents:
            return "it is the model's input: scale the data (scale-input)"
        # what nothing comes of, such as a figure for a log, is no use
        if sum(use in needed for use in merges.uses[value]) + (value in merges.outputs) > 1:
            return f"what {value.leaf or value.operation or 'it'} gives is used elsewhere too"
        if value.leaf:
            break
        if len(value.parents) > 1 or value.operation not in _HANDS_ON:
            return f"{value.operation} stands between its last layer and the merge"
        value = value.parents[0]
    module = modules[value.leaf]
    if isinstance(module, NORMS):
        return f"{value.leaf} ({type(module).__name__}) sets its scale"
    if type(module) not in (*WEIGHTED, *ACTIVATIONS, nn.Embedding) and not isinstance(module, _POOLS):
        return f"{value.leaf} ({type(module).__name__}) is not a layer that this treatment knows"
    if merges.calls[value.leaf] > 1:
        return f"{value.leaf} runs {merges.calls[value.leaf]} times in a pass"
    try:
        check_place(model, module, value.leaf)
    except SurgeryError as error:
        return error.got
    last = _features_last(value, modules)
    return (
        f"the axis of its features behind {value.leaf} is not known"
        if last is None
        else Tap(value.leaf, value.shape, last)
    )


def _continues(inner: Merge, outer: Merge, merges: Merges) -> bool:
    """Whether what one merge gives goes nowhere but into another of its kind, in the same forward."""
    alone = len(merges.uses[inner.value]) == 1
    return alone and inner.kind == outer.kind and inner.owner == outer.owner


def _streams(merge: Merge, made: Mapping[Value, Merge], inner: set[Value]) -> list[Operand]:
    streams = []
    for operand in merge.operands:
        streams += _streams(made[operand.value], made, inner) if operand.value in inner else [operand]
    return streams


def _fed(value: Value, merges: Merges) -> set[str]:
    """The leaves that take a value, as it is or after operations that hand it on."""
    uses = merges.uses.get(value, ())
    further = (_fed(use, merges) for use in uses if not use.leaf and use.operation in _HANDS_ON)
    return {use.leaf for use in uses if use.leaf}.union(*further)


def _features_last(value: Value, modules: Mapping[str, nn.Module]) -> bool | None:
    """Whether features are on the last axis of a value; `None` where that is not known."""
    if len(value.shape) == 2:
        return True
    while value.leaf or value.parents:
        module = modules[value.leaf] if value.leaf else None
        if isinstance(module, nn.Linear | nn.Embedding):
            return True
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_POOLS)):
            return False
        kept = isinstance(module, ACTIVATIONS) or value.operation in ODD_FUNCTIONS | {""}
        if not kept or not value.parents or value.parents[0].shape != value.shape:
            return None
        value = value.parents[0]
    return None
