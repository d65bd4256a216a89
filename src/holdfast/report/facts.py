"""What a run was: model, optimiser, steps, what the monitor cost and did."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from holdfast.core.protocols import History
from holdfast.core.structure import Structure
from holdfast.figures.wording import number

# What the optimiser's first group says about the training, in this order, where it is there.
_SETTINGS = ("lr", "momentum", "nesterov", "betas", "eps", "weight_decay")


def run_facts(history: History) -> list[tuple[str, str]]:
    """Facts of a run as pairs of term and description, for a definition list.

    Args:
        history: a run.

    Returns:
        Only facts that the run knows.
    """
    facts = [("Run", history.name), ("Optimiser steps", str(history.steps))]
    streams = history.streams()
    for stream in streams:
        structure = history.structure(stream)
        if structure is not None:
            suffix = f" ({stream})" if len(streams) > 1 else ""
            facts += [(term + suffix, text) for term, text in _structure(structure)]
        facts += _cadence(history, stream)
    facts += _series(history, streams[0] if streams else "net")
    facts += _account(history)
    events = Counter(event.kind for event in history.events())
    if events:
        facts.append(("Events", ", ".join(f"{count} × {kind}" for kind, count in events.items())))
    return facts


def _structure(structure: Structure) -> list[tuple[str, str]]:
    shapes = {each.name: each.shape for node in structure.modules for each in node.parameters}
    for names in structure.aliases:  # one tensor under several names counts once
        for name in names[1:]:
            shapes.pop(name, None)
    count = sum(math.prod(shape) for shape in shapes.values())
    leaves = sum(node.leaf for node in structure.modules)
    facts = [("Model", f"{structure.model}: {leaves} leaf modules, {_grouped(count)} parameters")]
    if structure.optimiser:
        text = structure.optimiser
        if structure.groups:
            first = structure.groups[0].settings
            text += "".join(f", {key} {first[key]}" for key in _SETTINGS if first.get(key) not in (None, False, 0))
        if len(structure.groups) > 1:
            text += f" (first of {len(structure.groups)} parameter groups)"
        facts.append(("Optimiser", text))
    return facts


def _grouped(count: int) -> str:
    """Thousands apart by a narrow space that does not break."""
    return f"{count:,}".replace(",", "\u202f")


def _cadence(history: History, stream: str) -> list[tuple[str, str]]:
    """How often the layers were observed, from the readings themselves."""
    for measure in history.measures():
        steps = np.unique([each.step for each in history.readings(measure) if each.site.stream == stream])
        if len(steps) > 1:
            gap = float(np.median(np.diff(steps)))
            return [("Layers observed", f"at {len(steps)} steps, {number(gap, 2)} steps apart (median)")]
    return []


def _account(history: History) -> list[tuple[str, str]]:
    """What the monitor cost, as its last account says."""
    accounts = [event for event in history.events("cadence") if "overhead" in event.data]
    if not accounts:
        return []
    last = accounts[-1]
    seconds = last.data.get("seconds", {})
    parts = [f"{part} {number(float(spent), 2)} s" for part, spent in seconds.items()] if seconds else []
    return [("Monitor", ": ".join(filter(None, [last.message, ", ".join(parts)])))]


def _series(history: History, stream: str) -> list[tuple[str, str]]:
    facts = []
    for name in history.value_names(stream):
        _, values = history.values(name, stream)
        finite = values[np.isfinite(values)]
        if not len(finite):
            continue
        if name in ("loss", "learning-rate"):
            words = f"{number(float(finite[0]))} at first, {number(float(finite[-1]))} at last"
            if finite[0] == finite[-1]:
                words = number(float(finite[0]))
            facts.append((name.replace("-", " ").capitalize(), words))
        elif "overhead" in name or name.endswith(("-seconds", "-share")):
            facts.append((name.replace("-", " ").capitalize(), f"{number(float(np.median(finite)))} (median of steps)"))
    return facts
