"""What static rules share: they read structures, and their evidence is what model and optimiser were set to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.structure import Group, ModuleNode, ParameterNode, Structure

START = 0
"""The step of a fact that holds before the first step."""

UNFOLLOWED = "no forward pass was followed, so which layer feeds which is not known"

_NORMALISER = re.compile(r"(Norm|Renorm)(\dd)?$")


def judged(
    rule: str, history: History, judge: Callable[[Structure], list[Finding] | str]
) -> list[Finding] | Inconclusive:
    """Ask of every model's structure.

    Args:
        rule: its name.
        history: of a run.
        judge: gives the findings on one structure, or why it cannot decide.

    Returns:
        All findings; where no structure could be judged, why not.
    """
    findings: list[Finding] = []
    reasons = []
    for stream in history.streams():
        structure = history.structure(stream)
        answer = "the model's structure was not recorded" if structure is None else judge(structure)
        if isinstance(answer, str):
            reasons.append(answer)
        else:
            findings += answer
    if findings or (history.streams() and not reasons):
        return findings
    return Inconclusive(rule, reasons[0] if reasons else "no model was described")


def fact(measure: str, site: Site, value: float, unit: str, n: int = 1) -> Reading:
    """A reading of what was set: exact, and in force before the first step.

    Args:
        measure: what was read.
        site: where.
        value: as it was set, or as it follows from the structure alone.
        unit: of the value.
        n: how many elements it speaks of; 1 for a fact about one layer.

    Returns:
        The reading, without floor or interval.
    """
    return Reading(measure, site, START, value, unit, n)


def is_normaliser(node: ModuleNode) -> bool:
    """Whether a class's name, or that of a class of torch below it, says that it normalises.

    Example:
        >>> is_normaliser(ModuleNode("a", "LlamaRMSNorm", (), True)), is_normaliser(ModuleNode("b", "ReLU", (), True))
        (True, False)
    """
    return any(_NORMALISER.search(name) is not None for name in (node.kind, *node.bases))


def setting(settings: Mapping[str, Any], name: str) -> float | None:
    """A finite number among settings, `None` when there is none of that name.

    Example:
        >>> setting({"lr": 0.1, "fused": None}, "lr"), setting({"lr": "nan"}, "lr"), setting({"fused": True}, "fused")
        (0.1, None, None)
    """
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def decays(group: Group) -> float:
    """A group's weight decay; 0 where it has none."""
    return max(setting(group.settings, "weight_decay") or 0.0, 0.0)


def trained(structure: Structure, group: Group) -> list[tuple[ModuleNode, ParameterNode]]:
    """The parameters of a group that are trained, each once, with their modules, in the order of the tree."""
    names = set(group.parameters)
    return [
        (node, parameter)
        for node in structure.modules
        for parameter in node.parameters
        if parameter.requires_grad and parameter.name in names
    ]


def elements(parameter: ParameterNode) -> int:
    """How many numbers a parameter holds."""
    return math.prod(parameter.shape)


def weight_site(structure: Structure, node: ModuleNode, parameter: ParameterNode) -> Site:
    """Where a parameter lives."""
    return Site(node.path, "weight", stream=structure.stream, leaf=parameter.name.rpartition(".")[2])
