"""`Move`: a parameter between two states of a model; `moves_of`: from an update that is told by names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.core.structure import Structure
from holdfast.live.leaves import leaf_modules
from holdfast.live.tensors import storage_of


class Move(NamedTuple):
    """A parameter between two states.

    Args:
        name: its full name, the first where it has several.
        parameter: itself.
        before: its old value.
        after: its new value.
    """

    name: str
    parameter: Tensor
    before: Tensor
    after: Tensor

    @property
    def moved(self) -> bool:
        """Whether the two differ."""
        return not torch.equal(self.before.to(self.after), self.after)


def moves_of(
    model: nn.Module,
    update: Mapping[str, Tensor] | None,
    before: Mapping[str, Tensor] | None,
    after: Mapping[str, Tensor] | None,
) -> list[Move]:
    """The parameters that an update names, each once, in the order of the model.

    Args:
        model: the plain module.
        update: the change by full name; the model holds the values before it.
        before: the old values by full name.
        after: the new ones; the model's own when only `before` is given.

    Returns:
        One move a parameter, its values safe from being written to through the parameter. Names of buffers are passed
        over.

    Raises:
        InputError: the update is missing or told twice, names no parameter, or has another shape.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> (move,) = moves_of(layer, {"weight": torch.ones(1, 1)}, None, None)
        >>> move.name, (move.after - move.before).item(), move.moved
        ('weight', 1.0, True)
    """
    if (update is None) == (before is None) or (update is not None and after is not None):
        told = [name for name, each in (("update", update), ("before", before), ("after", after)) if each is not None]
        raise InputError(
            "an update, told once",
            " and ".join(told) or "none",
            "give update= (ΔW by name), or before= (and the model as it is now), or before= and after=",
        )
    named = dict(model.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)} - named.keys()
    found: dict[int, Move] = {}
    for name, value in (update if update is not None else before or {}).items():
        if name in buffers:
            continue  # state dictionaries hold them too
        other = value if after is None else after.get(name)
        _require_fits(name, named, value, other)
        parameter, old = named[name], named[name].detach()
        if update is not None:
            move = Move(first[id(parameter)], parameter, old.clone(), old + value.detach().to(old))
        else:
            new = old.clone() if after is None else _own(after[name], old)
            move = Move(first[id(parameter)], parameter, _own(value, old), new)
        found.setdefault(id(parameter), move)
    return [found[key] for key in first if key in found]


def _require_fits(name: str, named: Mapping[str, Tensor], *values: Tensor | None) -> None:
    for value in values:
        if name not in named or value is None:
            raise InputError(
                "names of the model's parameters" + (", the same before and after" if name in named else ""),
                repr(name),
                f"take them from model.named_parameters(), such as {next(iter(named), 'none')!r}",
            )
        if value.shape != named[name].shape:
            raise InputError(
                f"values of shape {tuple(named[name].shape)} for {name!r}",
                f"shape {tuple(value.shape)}",
                "give every parameter's update in its own shape",
            )


def _own(value: Tensor, parameter: Tensor) -> Tensor:
    """A value that stays when the parameter is written to."""
    value = value.detach()
    return value.clone() if storage_of(value) == storage_of(parameter) else value


def by_layer(model: nn.Module, structure: Structure, moves: Sequence[Move]) -> dict[str, list[Move]]:
    """Moves by the layer that holds the parameter, in the order of execution.

    Args:
        model: the plain module.
        structure: of the model, with the order.
        moves: from `moves_of`.

    Returns:
        By path. What a leaf keeps in its children (parametrisations, the projections of attention) is the leaf's own; a
        container that holds parameters itself comes where its first leaf runs.
    """
    leaves = {path for path, _ in leaf_modules(model)}
    layers: dict[str, list[Move]] = {}
    for move in moves:
        owner = move.name.rpartition(".")[0]
        parts = owner.split(".")
        within = next((path for n in range(len(parts)) if (path := ".".join(parts[: n + 1])) in leaves), owner)
        layers.setdefault(within, []).append(move)
    place = {path: index for index, path in enumerate(structure.order)}

    def when(path: str) -> int:
        inside = [place[each] for each in place if each == path or not path or each.startswith(f"{path}.")]
        return min(inside, default=len(place))

    return {path: layers[path] for path in sorted(layers, key=when)}
