"""`normaliser_rows`: the kinds of normaliser in a model, each with what it computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from holdfast.core.structure import ModuleNode, Structure
from holdfast.norms.examples import examples
from holdfast.norms.make import MAKERS
from holdfast.norms.spec import NormSpec


@dataclass(frozen=True, slots=True)
class NormaliserRow:
    """One kind of normaliser in a model.

    Args:
        name: of its class, with its groups where it has them.
        count: how many the model has.
        spec: what they compute.
    """

    name: str
    count: int
    spec: NormSpec


def normaliser_rows(structure: Structure) -> list[NormaliserRow]:
    """The normalisers of torch's and ours that a model has, each kind once.

    Kinds are told by the names of classes, for a run keeps no more of them.

    Args:
        structure: of a run.

    Returns:
        In the order in which they first stand in the model; without γ and β where the layer has none.
    """
    known: dict[str, Any] = examples()
    counts: Counter[tuple[str, NormSpec]] = Counter()
    for node in structure.modules:
        module = known.get(node.kind)
        if module is None or node.kind in MAKERS or (hasattr(nn, node.kind) and node.kind not in node.bases):
            continue
        spec = _as_built(module.spec, node)
        name = f"{node.kind}, {spec.groups} group{'s' * (spec.groups > 1)}" if _groups(node) else node.kind
        counts[name, spec] += 1
    return [NormaliserRow(name, count, spec) for (name, spec), count in counts.items()]


def _as_built(spec: NormSpec, node: ModuleNode) -> NormSpec:
    """The spec with the groups, chunks, γ and β that the layer has."""
    names = {each.name.rpartition(".")[2] for each in node.parameters}
    gain = "weight" in names
    affine = "none" if not gain else "channels" if spec.affine == "none" else spec.affine
    chunk = node.settings.get("chunk_size") if spec.chunk else None
    return replace(
        spec,
        affine=affine,
        bias="bias" in names,
        groups=_groups(node) or spec.groups,
        chunk=chunk if isinstance(chunk, int) else spec.chunk,
    )


def _groups(node: ModuleNode) -> int:
    groups = node.settings.get("num_groups")
    return groups if isinstance(groups, int) and groups > 0 else 0
