"""`Event`: something that happened in a run and is not a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from holdfast.core.site import Site

EventKind = Literal["alarm", "nonfinite", "monitor-error", "cadence", "coarsened", "skipped-step", "model-changed"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a step.

    Args:
        step: the optimiser step at which it happened.
        kind: what sort of thing.
        message: one sentence for a person.
        site: where, if anywhere.
        data: further plain values (JSON).
    """

    step: int
    kind: EventKind
    message: str
    site: Site | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
