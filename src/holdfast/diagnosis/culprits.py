"""Culprits: whose updates moved a site, where a run holds steps that were taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.diagnosis.wording import percent, plural
from holdfast.measures.attribution import Attribution, Cell, attributions

MOSTLY = 0.5
"""The part of a shift from which one layer's update is the cause: more than all others together."""
NAMED = 0.1
"""The part from which a layer is worth a name."""
MOST_NAMED = 3


class Culprits(NamedTuple):
    """Who moved a site.

    Args:
        words: a clause for a message, `""` where nothing is known.
        evidence: the effect of each named layer's update on the site, at the step nearest to its median; at the site
            of that layer's update.
    """

    words: str
    evidence: tuple[Reading, ...] = ()


class _Part(NamedTuple):
    """A layer's part of the joint shift over the updates taken apart, and its cells in these."""

    layer: str
    share: float
    cells: Sequence[Cell]

    @property
    def stands(self) -> bool:
        """Whether it moves the site above noise in most of them."""
        return 2 * sum(cell.above_noise for cell in self.cells) > len(self.cells)


def culprits(history: History, site: Site) -> Culprits:
    """Name the layers whose updates moved a site.

    A layer's part of a step's shift is its signed effect over the joint drift, at the steps whose joint drift is above
    noise; what counts is the median over these steps. The parts and the interaction add up to the whole, so a part may
    be negative or above 1, where updates work against each other.

    Args:
        history: of a run.
        site: an input or output of a layer; whatever its phase, the steps of training are looked at.

    Returns:
        The clause and the evidence; empty where no step was taken apart, or the site did not move in any.

    Example:
        >>> from holdfast.store.memory import MemoryRun
        >>> culprits(MemoryRun(), Site("fc", "input")).words
        ''
    """
    place = site.at(phase="train")
    seen: list[tuple[Attribution, list[Cell]]] = []
    for found in attributions(history, site.stream):
        cells = found.cells(place)
        if cells is not None and cells[-2].above_noise:
            seen.append((found, cells))
    if not seen:
        return Culprits("")
    parts = _parts(seen)
    interaction = float(np.median([cells[-1].effect / cells[-2].effect for _, cells in seen]))
    standing = [part for part in parts if part.stands]
    with_it = [part for part in standing if part.share >= NAMED][:MOST_NAMED]
    against = [part for part in standing[::-1] if part.share <= -NAMED][:MOST_NAMED]
    over = f"median of {plural(len(seen), 'update')}" if len(seen) > 1 else "one update"
    words = f"{_words(with_it, against, interaction)} ({over} taken apart)"
    return Culprits(words, tuple(_reading(part, seen, place) for part in (*with_it, *against)))


def _parts(seen: Sequence[tuple[Attribution, list[Cell]]]) -> list[_Part]:
    """Every layer's part, the greatest first."""
    nothing = Cell(0.0, 0.0, 0.0)
    parts = []
    for layer in dict.fromkeys(name for found, _ in seen for name in found.layers):
        own = [cells[found.layers.index(layer)] if layer in found.layers else nothing for found, cells in seen]
        shares = [cell.effect / cells[-2].effect for cell, (_, cells) in zip(own, seen, strict=True)]
        parts.append(_Part(layer, float(np.nanmedian(shares)) if not np.isnan(shares).all() else 0.0, own))
    return sorted(parts, key=lambda part: -part.share)


def _words(with_it: Sequence[_Part], against: Sequence[_Part], interaction: float) -> str:
    """How much of the shift is whose, without a culprit where there is none."""
    both = f"their interaction {_signed(interaction)}"
    if not with_it:
        return f"no layer's update alone makes a part of the shift above noise; {both}"
    first, *others = with_it
    if abs(interaction) >= first.share:
        words = f"no layer makes the shift alone: {_listed(with_it)} by updates of their own, {both}"
    elif first.share >= MOSTLY:
        words = f"the update of '{first.layer}' alone makes {percent(first.share)} of the shift"
        words += f" ({_listed(others)})" if others else ""
    else:
        words = f"no one layer makes most of the shift: {_listed(with_it)} by updates of their own"
    if against:
        words += f"; against it {_listed(against)}"
    if NAMED <= abs(interaction) < first.share:
        words += f"; {both}"
    return words


def _listed(parts: Sequence[_Part]) -> str:
    return ", ".join(f"'{part.layer}' {_signed(part.share)}" for part in parts)


def _signed(share: float) -> str:
    return f"{'−' if share < 0 else ''}{percent(abs(share))}"


def _reading(part: _Part, seen: Sequence[tuple[Attribution, list[Cell]]], site: Site) -> Reading:
    """The effect at the step where the part is nearest to its median."""
    index = min(
        (index for index, cell in enumerate(part.cells) if cell.above_noise),
        key=lambda index: abs(part.cells[index].effect / seen[index][1][-2].effect - part.share),
    )
    table, cell = seen[index][0].effect, part.cells[index]
    module = "" if part.layer == "(model)" else part.layer
    update = Site(module, "update", site.stream)
    return Reading(table.measure, update, table.step, cell.effect, table.unit, table.n, cell.floor, lag=1)
