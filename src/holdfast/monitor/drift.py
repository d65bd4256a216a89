"""Readings of how far sites moved between two passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.measures.drift_gain import drift_gain
from holdfast.measures.parameter_drift import parameter_drift
from holdfast.measures.scale_shift import scale_shift
from holdfast.monitor.blas import on_one_thread
from holdfast.stats.features import Features


@on_one_thread
def paired_drift(
    reference: Mapping[Site, Features], current: Mapping[Site, Features], *, step: int, lag: int
) -> list[Reading]:
    """Parameter drift, scale shift and drift gain of every site seen in both passes over the same inputs.

    A tensor that is one layer's output and the next one's input is compared once.

    Args:
        reference: features by site before.
        current: features by site after, of the same samples.
        step: the step after which `current` was seen.
        lag: optimiser steps between the two.

    Returns:
        The readings, sites in the order of `reference`.
    """
    readings: list[Reading] = []
    done: dict[tuple[int, int], list[Reading]] = {}
    drifts: dict[Site, Reading] = {}
    for site, before in reference.items():
        after = current.get(site)
        if after is None or after.values.shape != before.values.shape:
            continue
        found = done.get((id(before), id(after)))
        if found is None:
            drift = parameter_drift(before, after, site=site, step=step, lag=lag)
            scale = scale_shift(before, after, site=site, step=step, lag=lag) if drift is not None else None
            found = [each for each in (drift, scale) if each is not None]
            done[id(before), id(after)] = found
        for reading in found:
            here = reading if reading.site == site else replace(reading, site=site)
            readings.append(here)
            if here.measure == "parameter-drift":
                drifts[site] = here
    for site, out in drifts.items():
        if site.port != "output" or site.leaf:
            continue
        into = drifts.get(site.at(port="input"))
        gain = drift_gain(into, out) if into is not None else None
        if gain is not None:
            readings.append(gain)
    return readings
