"""What the rules about batch normalisers share: their series, and why nothing can be said of a stream."""

from __future__ import annotations

import math
from collections.abc import Iterable

from holdfast.core.protocols import History
from holdfast.core.structure import ModuleNode
from holdfast.diagnosis.evidence import Series, series_of
from holdfast.diagnosis.wording import plural

SETTLED = 30
"""Steps before running statistics can be judged: of momentum 0.1 they hold 0.9³⁰ = 4 % of their start then."""


def normaliser_series(history: History, measure: str, stream: str, *, after: int = 0) -> list[Series]:
    """A measure's readings at batch normalisers, of passes trained on, in whichever mode the model was.

    Args:
        history: of a run.
        measure: its name.
        stream: which model.
        after: readings up to this step are left out.

    Returns:
        One series for each layer with a reading left.
    """
    found = []
    for phase in ("train", "eval"):
        for series in series_of(history, measure, stream=stream, port="input", phase=phase):
            later = tuple(reading for reading in series.readings if reading.step > after)
            if later:
                found.append(Series(series.site, later))
    return found


def batch_normalisers(history: History, stream: str) -> list[ModuleNode] | None:
    """The batch normalisers of a model, `None` where its structure was not recorded."""
    structure = history.structure(stream)
    if structure is None:
        return None
    return [node for node in structure.modules if "_BatchNorm" in node.bases]


def reason_against(history: History, stream: str, series: Iterable[Series], needed: int, what: str) -> str:
    """Why a stream cannot be judged, `""` when it can.

    Args:
        history: of a run.
        stream: which model.
        series: what there is to judge.
        needed: readings of one layer.
        what: is read, in words that fit before "was read at".

    Returns:
        A sentence's worth; `""` too for a model without batch normalisers.
    """
    most = max((len(each.readings) for each in series), default=0)
    layers = batch_normalisers(history, stream)
    if most >= needed or layers == []:
        return ""
    if layers is None and not most:
        return "the model's structure was not recorded, and no batch normaliser was observed"
    said = f"{what} was read {plural(most, 'time')} at a layer; it needs {needed}"
    if not most and history.steps > SETTLED:
        said += " (a batch of a single sample tells nothing of its noise)"
    return said


def momentum_of(history: History, stream: str, path: str) -> float | None:
    """The share of each batch in a layer's running statistics, `None` where it is not known or a plain average."""
    node = next((each for each in batch_normalisers(history, stream) or [] if each.path == path), None)
    momentum = None if node is None else node.settings.get("momentum")
    if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not math.isfinite(momentum):
        return None
    return float(momentum)
