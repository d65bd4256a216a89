"""Where samples cannot be told apart, and no drift in units of their SD is to be believed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.structure import Structure
from holdfast.core.units import Unit
from holdfast.measures.signal_spread import spread_of
from holdfast.stats.channels import ChannelMoments

DEAD_SPREAD = 2.0**-10
"""Below it the samples differ by less than two units in the last place of float16 (11 significant bits), and less than
half a unit of bfloat16 (8 bits): 2⁻¹⁰ ≈ 0.001. Seen: healthy networks ≥ 0.3 at every layer; ten sigmoid layers of
PyTorch's default initialisation 3e-4 at the fifth and 2e-8 at the last."""


def spreads(history: History, stream: str) -> dict[Site, list[Reading]]:
    """The spread at the input of every observed module, step by step.

    Args:
        history: of a run.
        stream: which model.

    Returns:
        By site, in the order of execution; sites without a figure left out. Readings of `signal-spread` where the
        monitor wrote them, else from the channel statistics. (A run database may have merged those over some steps:
        the SD then holds the drift between these steps too, and the spread comes out too large, never too small.)
    """
    found: dict[Site, list[Reading]] = {}
    for reading in history.readings("signal-spread"):
        site = reading.site
        if (site.stream, site.port, site.phase) == (stream, "input", "train") and math.isfinite(reading.value):
            found.setdefault(site, []).append(reading)
    for site in history.sites(port="input", phase="train", stream=stream):
        if site in found:
            continue
        for step, statistic in history.channels(site):
            if not isinstance(statistic, ChannelMoments):
                continue
            value = spread_of(statistic)
            if math.isfinite(value):
                n = int(statistic.count.max())
                found.setdefault(site, []).append(Reading("signal-spread", site, step, value, Unit.RATIO, n))
    return found


def dead_modules(history: History, stream: str, threshold: float = DEAD_SPREAD) -> dict[str, float]:
    """Modules at whose input the samples cannot be told apart: no drift in reference SD is to be believed there.

    A module is dead when its median spread over the observed steps is below the threshold; when more than half of its
    features are collapsed and not merely zero (as behind rectifiers, where the others may carry the signal); or when
    nothing but dead modules feeds it, none of them a normaliser: what cannot be told apart before a layer cannot be
    after it, and only a normaliser enlarges what little is left.

    Args:
        history: of a run.
        stream: which model.
        threshold: of the median spread.

    Returns:
        Path → median spread, in the order of observation; NaN where the spread is not known or, being merged over
        steps, not to be believed.
    """
    per_step = {reading.site.module for reading in history.readings("signal-spread") if reading.site.stream == stream}
    medians = {
        site.module: float(np.median([reading.value for reading in readings]))
        for site, readings in spreads(history, stream).items()
    }
    dead = {module: value for module, value in medians.items() if value < threshold}
    for module in _collapsed(history, stream) - per_step:
        dead.setdefault(module, math.nan)
    for module in _fed_by_dead(history.structure(stream), dead) - per_step:
        dead.setdefault(module, math.nan)
    order = list(dict.fromkeys(site.module for site in history.sites(port="input", phase="train", stream=stream)))
    return {module: dead[module] for module in order if module in dead}


def _collapsed(history: History, stream: str) -> set[str]:
    """Modules with more than half of their features collapsed and not zero throughout, at most observed steps."""
    shares: dict[Site, list[float]] = {}
    for reading in history.readings("collapsed-features"):
        site = reading.site
        if (site.stream, site.phase) == (stream, "train") and math.isfinite(reading.value):
            shares.setdefault(site, []).append(reading.value)
    found = set()
    for site, values in shares.items():
        if float(np.median(values)) <= 0.5:
            continue
        kept = [each for _, each in history.channels(site) if isinstance(each, ChannelMoments) and each.channels]
        silent = float(np.median([each.dead.mean() for each in kept])) if kept else 0.0
        if float(np.median(values)) - silent > 0.5:
            found.add(site.module)
    return found


def _fed_by_dead(structure: Structure | None, dead: Mapping[str, float]) -> set[str]:
    """Modules that nothing but dead modules feeds, directly or through others."""
    if structure is None:
        return set()
    normalisers = {node.path for node in structure.modules if any("Norm" in kind for kind in (node.kind, *node.bases))}
    known = set(dead)
    # In the order of execution one pass is enough; a module that runs twice may feed an earlier one.
    for module in structure.order:
        sources = [source for source in structure.sources(module) if source != module]
        if sources and all(source in known and source not in normalisers for source in sources):
            known.add(module)
    return known - set(dead)
