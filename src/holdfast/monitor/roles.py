"""`Roles`: what some layers are watched for in particular, told from their types and from the structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from holdfast.core.site import Port
from holdfast.core.structure import Structure
from holdfast.live.leaves import is_rectifier, saturation_threshold, zero_up_to


@dataclass(frozen=True, slots=True)
class Roles:
    """What some layers are watched for in particular, and what else of the structure tells how to read a layer.

    Args:
        saturating: `(path, port)` whose values enter an activation with two flat ends → |x| beyond which it is flat.
        rectifiers: paths of the layers whose units can die.
        rectified: paths of the layers whose output a rectifying function takes → the value up to which it gives zero.
        sources: path of a layer → paths of the observed layers that feed it.
        time_first: whether sequences have time on axis 0 and samples on axis 1.
    """

    saturating: Mapping[tuple[str, Port], float] = field(default_factory=dict)
    rectifiers: frozenset[str] = frozenset()
    rectified: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    time_first: bool = False


def roles(leaves: Sequence[tuple[str, nn.Module]], structure: Structure) -> Roles:
    """Who saturates and who can die, told from types and from the structure, never from a range of values.

    A model keeps its sequences time first when it holds recurrent or attention layers and none is `batch_first`.

    Args:
        leaves: `(path, module)` of the layers observed.
        structure: names the functions that take a layer's output, and which layer feeds which.

    Returns:
        The roles.

    Example:
        >>> net = [("act", nn.Tanh()), ("rect", nn.ReLU())]
        >>> found = roles(net, Structure("net", "Net", ()))
        >>> list(found.saturating), sorted(found.rectifiers)
        ([('act', 'input')], ['rect'])
    """
    saturating: dict[tuple[str, Port], float] = {}
    for path, module in leaves:
        limit = saturation_threshold(module)
        if limit is not None:
            saturating[path, "input"] = limit
    rectifiers = frozenset(path for path, module in leaves if is_rectifier(module))
    rectified: dict[str, float] = {}
    observed = {path for path, _ in leaves}
    for call in structure.functional:
        # A module of known type that calls the function itself is one place, not two.
        if call.producer not in observed or (call.owner, "input") in saturating or call.owner in rectifiers:
            continue
        limit = saturation_threshold(call.name)
        if limit is not None:
            saturating[call.producer, "output"] = limit
        zero = zero_up_to(call.name)
        if zero is not None and call.producer not in rectifiers:
            rectified[call.producer] = zero
    sources: dict[str, tuple[str, ...]] = {}
    for source, target in structure.edges:
        if source:
            sources[target] = (*sources.get(target, ()), source)
    batch_first = {
        bool(node.settings.get("batch_first"))
        for node in structure.modules
        if {"RNNBase", "MultiheadAttention"} & set(node.bases)
    }
    return Roles(saturating, rectifiers, rectified, sources, batch_first == {False})
