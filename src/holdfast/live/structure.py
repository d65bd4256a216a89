"""`extract`: a live model as a `Structure`."""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from holdfast.core.structure import Group, ModuleNode, ParameterNode, Structure
from holdfast.live.flow import Flow
from holdfast.live.inner import inner_model
from holdfast.live.leaves import leaf_modules
from holdfast.live.ranks import copies, world_size
from holdfast.live.replay import Call
from holdfast.live.unseen import unseen


def extract(
    model: nn.Module, optimizer: Optimizer | None = None, *, stream: str = "net", call: Call | None = None
) -> Structure:
    """Describe a model as a graph.

    With a recorded call the forward pass is replayed once, without side effects, and followed: order of execution, data
    flow between the leaves, number of calls, operations that no module wraps, parts that hooks cannot see. Edges lead
    between observed leaves; dropout, shape changes and functional operations in between are passed through. A module
    that runs several times has one node, and may feed itself.

    Args:
        model: a compiled or a distributed one is looked into.
        optimizer: for the parameter groups.
        stream: name of the model in the run.
        call: a forward pass to follow; without one only what stands still is told.

    Returns:
        The structure. When the replay fails it tells what stands still, and `not_seen` says why.

    Example:
        >>> from holdfast.live.replay import record_call
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU())
        >>> structure = extract(net, call=record_call((torch.ones(3, 2, 2),), {}))
        >>> structure.order, structure.edges
        (('0', '1', '2'), (('', '1'), ('1', '2')))
    """
    inner = inner_model(model)
    flow: Flow | None = None
    not_seen: tuple[str, ...] = (
        "no forward pass was followed: order, data flow and functional operations are unknown",
    )
    if call is not None:
        flow = Flow(inner)
        try:
            flow.follow(inner, call)
            not_seen = tuple(unseen(inner, flow))
        except Exception as error:
            flow = None
            not_seen = (
                "the forward pass could not be repeated, so order, data flow and functional operations are unknown "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})",
            )
    names = _parameter_names(inner)
    return Structure(
        stream=stream,
        model=kind_of(inner),
        modules=tuple(_nodes(inner, optimizer, flow)),
        order=() if flow is None else tuple(flow.order),
        edges=() if flow is None else tuple(flow.edges),
        functional=() if flow is None else tuple(flow.functional),
        aliases=tuple(tuple(same) for same in names.values() if len(same) > 1),
        optimiser="" if optimizer is None else type(optimizer).__name__,
        groups=() if optimizer is None else tuple(_groups(optimizer, names)),
        not_seen=not_seen,
        ranks=world_size(),
    )


def kind_of(module: nn.Module) -> str:
    """The name of a module's class as the user wrote it.

    Parametrisation (`ParametrizedLinear`) and sharding (`FSDPLinear`) put a class of their own in its place.

    Example:
        >>> kind_of(nn.utils.parametrizations.weight_norm(nn.Linear(1, 1)))
        'Linear'
    """
    kinds = type(module).__mro__
    if kinds[0].__module__ == "torch.nn.utils.parametrize" and kinds[0].__name__.startswith("Parametrized"):
        kinds = kinds[1:]
    if kinds[1].__name__ == "FSDPModule":
        kinds = kinds[2:]
    return kinds[0].__name__


def _parameter_names(model: nn.Module) -> dict[int, list[str]]:
    """All full names of each parameter, by identity."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return names


def _nodes(model: nn.Module, optimizer: Optimizer | None, flow: Flow | None) -> Iterator[ModuleNode]:
    groups = {
        id(parameter): index
        for index, group in enumerate([] if optimizer is None else optimizer.param_groups)
        for parameter in group["params"]
    }
    leaves = {path for path, _ in leaf_modules(model)}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        yield ModuleNode(
            path=path,
            kind=kind_of(module),
            bases=tuple(
                kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.modules")
            )[
                :-1  # nn.Module itself
            ],
            leaf=path in leaves,
            parameters=tuple(
                ParameterNode(
                    name=prefix + name,
                    shape=() if is_lazy(parameter) else tuple(parameter.shape),
                    dtype=str(parameter.dtype).removeprefix("torch."),
                    requires_grad=parameter.requires_grad,
                    group=groups.get(id(parameter)),
                    copies=copies(parameter),
                )
                for name, parameter in module._parameters.items()
                if parameter is not None
            ),
            settings=_plain_items(module.__dict__, without={"training"}),
            calls=None if flow is None else flow.calls.get(path, 0),
            input_shape=None if flow is None else flow.shapes.get(path),
        )


def _groups(optimizer: Optimizer, names: Mapping[int, list[str]]) -> Iterator[Group]:
    for group in optimizer.param_groups:
        yield Group(
            settings=_plain_items(group, without={"params", "param_names"}),
            parameters=tuple(names[id(parameter)][0] for parameter in group["params"] if id(parameter) in names),
        )


def _plain_items(values: Mapping[str, Any], without: set[str]) -> dict[str, Any]:
    plain = {name: _plain(value) for name, value in values.items() if not name.startswith("_") and name not in without}
    return {name: value for name, value in plain.items() if value is not _NOT_PLAIN}


_NOT_PLAIN = object()
_LONGEST = 64


def _plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples as lists, functions and types by their names."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else _NOT_PLAIN
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    if isinstance(value, tuple | list):
        items = [_plain(each) for each in value] if len(value) <= _LONGEST else [_NOT_PLAIN]
        return _NOT_PLAIN if any(item is _NOT_PLAIN for item in items) else items
    if isinstance(value, torch.Tensor):  # a learning rate kept on the device
        return _plain(value.item()) if value.numel() == 1 and not value.is_meta else _NOT_PLAIN
    if callable(value) and not isinstance(value, nn.Module):
        return getattr(value, "__name__", _NOT_PLAIN)
    return _NOT_PLAIN
