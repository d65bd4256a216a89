"""`parameter_layers`: a model's parameters by the layer that uses them, in the order of execution."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from holdfast.live.leaves import leaf_modules
from holdfast.live.memo import Memo


@dataclass(frozen=True, slots=True)
class ParameterLayer:
    """Parameters that count as one layer.

    Args:
        label: path of the leaf module that holds them; the parameter's own name where it hangs on a module with other
            modules inside, in a `ParameterList`, or on a model without modules.
        names: their first names, in the order of first use.
    """

    label: str
    names: tuple[str, ...]


def parameter_layers(model: nn.Module, memo: Memo) -> list[ParameterLayer]:
    """Group the parameters that a recorded pass used.

    A leaf is one layer with all its parameters, those of its parametrisations included, and so is
    `nn.MultiheadAttention`. A parameter that several leaves share belongs to the one that used it first.

    Args:
        model: the plain module.
        memo: of a pass through it.

    Returns:
        Layers in the order in which a parameter of theirs was first used; without those never seen in use.

    Example:
        >>> from holdfast.live.repeated import repeated
        >>> from holdfast.live.replay import record_call
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> with repeated(net, record_call((torch.ones(1, 2),), {})) as forward:
        ...     layers = parameter_layers(net, forward.record())
        >>> [(layer.label, layer.names) for layer in layers]
        [('0', ('0.weight', '0.bias')), ('2', ('2.weight',))]
    """
    held: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, leaf in leaf_modules(model):
        if path or type(leaf).forward.__module__.startswith(("torch.", "holdfast.")):
            for value in leaf.parameters():
                held.setdefault(id(value), []).append((path, leaf))
    identities = {name: id(value) for name, value in model.named_parameters(remove_duplicate=False)}
    grouped: dict[tuple[bool, str], list[str]] = {}
    for place, name in enumerate(memo.order):
        leaves = held.get(identities[name], [])
        paths = [path for path, leaf in leaves if _ran(memo, leaf, place)] or [path for path, _ in leaves]
        grouped.setdefault((True, paths[0]) if paths else (False, name), []).append(name)
    return [ParameterLayer(label or "(model)", tuple(names)) for (_, label), names in grouped.items()]


def _ran(memo: Memo, leaf: nn.Module, place: int) -> bool:
    """Whether a leaf was running when the parameter of that place in the order was first used."""
    return any(call.module is leaf and call.entered <= place < call.left for call in memo.calls)
