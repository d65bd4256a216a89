"""`Pair`: a normaliser and an activation that are neighbours in an `nn.Sequential`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from holdfast.core.errors import SurgeryError
from holdfast.live.surgery import check_place
from holdfast.treatments.change import Batch, call_of, rerun
from holdfast.treatments.normalisers import KNOWN
from holdfast.treatments.places import ACTIVATIONS, NORMS, WEIGHTED

Side = Literal["before", "after"]
Entries = list[tuple[str, nn.Module]]

_BY_CODE = (
    "no activation stands {side} it in an nn.Sequential: what a forward calls one by one, or a block that normalises "
    "before or after its sum (pre-norm, post-norm), is ordered by code, which this treatment does not rewrite"
)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A normaliser and its activation, one straight behind the other.

    Args:
        parent: the sequence that holds both.
        place: of the first of them, counted from 0.
        norm: the normaliser.
        activation: the activation.
    """

    parent: nn.Sequential
    place: int
    norm: nn.Module
    activation: nn.Module

    @property
    def names(self) -> tuple[str, str]:
        """Those of the two places."""
        names = list(self.parent._modules)
        return names[self.place], names[self.place + 1]

    @property
    def numbered(self) -> bool:
        """Whether the names are numbers, which must go on counting; other names move with their modules."""
        return all(name.isdigit() for name in self.names)

    @property
    def key(self) -> tuple[int, int]:
        """Identities of the first and the second."""
        (_, first), (_, second) = self.entries()
        return id(first), id(second)

    def exchange(self) -> None:
        """Let the two change places; a second time puts them back."""
        items = list(self.parent._modules.items())
        (a, first), (b, second) = items[self.place : self.place + 2]
        items[self.place : self.place + 2] = [(a, second), (b, first)] if self.numbered else [(b, second), (a, first)]
        self.parent._modules.clear()
        self.parent._modules.update(items)

    def check(self, entries: Entries) -> None:
        """Refuse when other modules stand here than those given.

        Args:
            entries: from `entries` of an earlier moment.

        Raises:
            SurgeryError: the model changed here since.
        """
        present = self.entries()
        if len(present) != 2 or any(a[0] != b[0] or a[1] is not b[1] for a, b in zip(present, entries, strict=True)):
            raise SurgeryError(
                f"{type(self.norm).__name__} and {type(self.activation).__name__} where they were left",
                "a model that changed there since",
                "plan again, or undo the later change first",
            )

    def entries(self) -> Entries:
        """Names and modules, as they stand."""
        items = list(self.parent._modules.items())[self.place : self.place + 2]
        return [(name, module) for name, module in items if module is not None]


def neighbours(model: nn.Module, path: str, norm: nn.Module, to: Side) -> Pair | str:
    """A normaliser with the activation to whose other side it can move, or the reason why it stays.

    Args:
        model: which holds it.
        path: of the normaliser.
        norm: the normaliser.
        to: the side of the activation to which it is to move.

    Returns:
        The pair as it stands.
    """
    if type(norm) not in KNOWN:
        return f"{type(norm).__name__} is not a normaliser that this treatment knows"
    places = [
        (parent, place)
        for parent in model.modules()
        for place, child in enumerate(parent._modules.values())
        if child is norm
    ]
    if len(places) > 1:
        return "it is shared"
    sequence, place = places[0] if places else (model, 0)
    children = list(sequence._modules.values())
    step = -1 if to == "before" else 1
    if type(sequence) is not nn.Sequential or not _activates(children, place + step):
        if type(sequence) is nn.Sequential and _activates(children, place - step):
            return f"it stands {to} its activation already"
        return _BY_CODE.format(side="in front of" if to == "before" else "behind")
    first = min(place, place + step)
    if first == 0 or type(children[first - 1]) not in WEIGHTED:
        return "no linear or convolutional layer stands straight before the two, so that the block's order is meant"
    if to == "after" and isinstance(children[place + 2] if place + 2 < len(children) else None, NORMS):
        return "another normaliser stands behind the activation"
    try:
        check_place(model, norm, path)
    except SurgeryError as error:
        return error.got
    activation = children[place + step]
    assert activation is not None
    return Pair(sequence, first, norm, activation)


def handed_on(model: nn.Module, batch: Batch) -> dict[tuple[int, int], int]:
    """How often each normaliser or activation got the very tensor that another one gave.

    Args:
        model: the model.
        batch: what it is called with; the call leaves no trace.

    Returns:
        Counts by the identities of giver and taker.
    """
    given: dict[int, tuple[Tensor, nn.Module]] = {}  # the tensors are kept, so that no identity is used twice
    found: dict[tuple[int, int], int] = {}

    def left(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            given[id(output)] = (output, module)

    def entered(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and id(args[0]) in given:
            key = id(given[id(args[0])][1]), id(module)
            found[key] = found.get(key, 0) + 1

    handles = []
    for module in model.modules():
        if isinstance(module, NORMS) or type(module) in ACTIVATIONS:
            handles += [module.register_forward_hook(left), module.register_forward_pre_hook(entered)]
    try:
        rerun(model, call_of(batch))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _activates(children: Sequence[nn.Module | None], place: int) -> bool:
    return 0 <= place < len(children) and type(children[place]) in ACTIVATIONS
