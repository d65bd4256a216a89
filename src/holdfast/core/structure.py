"""`Structure`: a model as a graph, without the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ParameterNode:
    """One parameter: where it lives, its shape, and which group of the optimiser steps it.

    Args:
        name: full name as `named_parameters` gives it.
        shape: of the tensor.
        dtype: such as `"float32"`.
        requires_grad: whether it is trained.
        group: index of the optimiser's parameter group, `None` when no group holds it.
        copies: how many of the ranks hold each of its elements; all of them unless it is sharded.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool
    group: int | None = None
    copies: int = 1


@dataclass(frozen=True, slots=True)
class ModuleNode:
    """One module of the tree.

    Args:
        path: as `named_modules` gives it.
        kind: name of its class, such as `"Conv2d"`.
        bases: names of the `torch.nn` classes that it is an instance of, nearest first (so that a subclass of
            `nn.Linear` is known as one).
        leaf: whether it has no children.
        parameters: its own, not its children's.
        settings: constructor values that rules ask for (`in_features`, `p`, `eps`, `inplace`, …).
        calls: how many times it ran in one forward pass; 0 when it did not, `None` when no pass was seen.
        input_shape: of the first tensor that a leaf was given in that pass, batch included; `None` when none was seen.
    """

    path: str
    kind: str
    bases: tuple[str, ...]
    leaf: bool
    parameters: tuple[ParameterNode, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    calls: int | None = None
    input_shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class FunctionalCall:
    """An operation that no module wraps, found on one batch.

    Args:
        name: of the function, such as `"sigmoid"` or `"scaled_dot_product_attention"`.
        owner: path of the innermost module in whose forward it ran.
        producer: path of the leaf module whose output it took, `None` when another operation made it.
    """

    name: str
    owner: str
    producer: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """One parameter group of the optimiser: its settings and the names of its parameters."""

    settings: Mapping[str, Any]
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Structure:
    """A model as a graph: modules, data flow seen on one batch, aliases, optimiser groups, what was not seen.

    Args:
        stream: name of the model in the run.
        model: name of its class.
        modules: every module, root first.
        order: paths of the leaf modules in the order of execution (each at its first call); empty when no pass
            was seen.
        edges: `(source, target)` leaf paths: target's input came from source's output, shape changes and
            functional operations between them passed through. `""` as source is the model's input.
        functional: operations that no module wraps.
        aliases: groups of full parameter names that are one tensor.
        optimiser: name of the optimiser's class, `""` when none was given.
        groups: its parameter groups.
        not_seen: one sentence for each part that hooks cannot see.
        ranks: how many processes train the model together.
    """

    stream: str
    model: str
    modules: tuple[ModuleNode, ...]
    order: tuple[str, ...] = ()
    edges: tuple[tuple[str, str], ...] = ()
    functional: tuple[FunctionalCall, ...] = ()
    aliases: tuple[tuple[str, ...], ...] = ()
    optimiser: str = ""
    groups: tuple[Group, ...] = ()
    not_seen: tuple[str, ...] = ()
    ranks: int = 1

    def module(self, path: str) -> ModuleNode | None:
        """The node at a path, or `None`."""
        return next((node for node in self.modules if node.path == path), None)

    def sources(self, path: str) -> tuple[str, ...]:
        """Paths of the leaves that feed a leaf."""
        return tuple(source for source, target in self.edges if target == path)

    def to_json(self) -> str:
        """As text for the run's database."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Structure:
        """Read `to_json`'s text back."""
        raw = json.loads(text)
        return cls(
            stream=raw["stream"],
            model=raw["model"],
            modules=tuple(
                ModuleNode(
                    path=node["path"],
                    kind=node["kind"],
                    bases=tuple(node["bases"]),
                    leaf=node["leaf"],
                    parameters=tuple(
                        ParameterNode(**{**each, "shape": tuple(each["shape"])}) for each in node["parameters"]
                    ),
                    settings=node["settings"],
                    calls=node["calls"],
                    # runs written before it was recorded have none
                    input_shape=None if node.get("input_shape") is None else tuple(node["input_shape"]),
                )
                for node in raw["modules"]
            ),
            order=tuple(raw["order"]),
            edges=tuple((source, target) for source, target in raw["edges"]),
            functional=tuple(FunctionalCall(**call) for call in raw["functional"]),
            aliases=tuple(tuple(names) for names in raw["aliases"]),
            optimiser=raw["optimiser"],
            groups=tuple(Group(group["settings"], tuple(group["parameters"])) for group in raw["groups"]),
            not_seen=tuple(raw["not_seen"]),
            ranks=raw.get("ranks", 1),
        )
