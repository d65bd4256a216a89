"""Readings of one observed step, from what the observer saw."""

from __future__ import annotations

import functools
import operator
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.structure import Structure
from holdfast.measures.backward_gain import backward_gain
from holdfast.measures.batch_noise import batch_noise
from holdfast.measures.collapsed_features import collapsed_features
from holdfast.measures.dead_units import dead_units
from holdfast.measures.gradient_norm import gradient_norm
from holdfast.measures.observed_drift import observed_drift
from holdfast.measures.parameter_share import parameter_share
from holdfast.measures.running_lag import running_lag
from holdfast.measures.sampling_drift import sampling_drift
from holdfast.measures.saturated_fraction import saturated_fraction
from holdfast.measures.signal_spread import signal_spread
from holdfast.measures.train_eval_gap import train_eval_gap
from holdfast.monitor.blas import on_one_thread
from holdfast.monitor.observer import Gradient
from holdfast.monitor.roles import Roles
from holdfast.stats.batch_statistics import BatchStatistics
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.features import Features
from holdfast.stats.observation import Observation

# A unit is called dead when it was silent on every sample of so many observed steps, not of one batch alone.
DEAD_WINDOW = 10

# A normaliser's running averages are held against the batches of so many observed steps; each step serves once, so
# that the readings are independent.
LAG_WINDOW = 5


@dataclass(slots=True)
class Past:
    """What earlier observed steps leave for later ones: the last batch's features, the last steps' zero counts."""

    step: int = 0
    features: dict[Site, Features] = field(default_factory=dict)
    channels: dict[Site, deque[tuple[ChannelMoments, int]]] = field(default_factory=dict)
    normalised: dict[Site, list[BatchStatistics]] = field(default_factory=dict)


@on_one_thread
def site_readings(
    seen: Mapping[Site, Observation],
    gradients: Mapping[Site, Gradient],
    drifts: Sequence[Reading],
    *,
    normalised: Mapping[Site, BatchStatistics] | None = None,
    past: Past,
    structure: Structure | None,
    roles: Roles,
    step: int,
) -> list[Reading]:
    """What the measures of one state, or of two batches, say about a step.

    Args:
        seen: observations by site.
        gradients: what was seen at the layers' outputs on the way back.
        drifts: the step probe's readings, for the parameters' share in the observed drift.
        normalised: what batch normalisers did in the passes trained on.
        past: earlier steps; brought up to date.
        structure: tells which layer feeds which.
        roles: which layers saturate, and which can die.
        step: the optimiser step just done.

    Returns:
        The readings.
    """
    readings = list(gradient_readings(gradients, structure, step))
    readings += normaliser_readings(normalised or {}, past, step)
    parameter = {each.site: each for each in drifts if each.measure == "parameter-drift"}
    features: dict[Site, Features] = {}
    for site, observation in seen.items():
        if site.phase != "train":
            continue
        if (site.module, site.port) in roles.saturating:
            readings += _some(
                saturated_fraction(observation.summary, site=site, step=step, samples=observation.features.samples)
            )
        if site.port == "output":
            rectified = observation.channels if site.module in roles.rectifiers else observation.rectified
            if rectified is not None:
                readings += _some(_dead(site, rectified, observation.features.samples, past, step))
            continue
        now = features[site] = observation.features
        readings += _some(
            collapsed_features(now, site=site, step=step),
            signal_spread(observation.channels, site=site, step=step, samples=now.samples),
        )
        then = past.features.get(site)
        if then is None or then.values.shape[1] != now.values.shape[1]:
            continue
        observed = observed_drift(then, now, site=site, step=step, lag=step - past.step)
        sampling = sampling_drift(then, now, site=site, step=step, lag=step - past.step)
        readings += _some(observed, sampling)
        if sampling is not None and site in parameter:
            readings += _some(parameter_share(parameter[site], sampling))
    past.step, past.features = step, features
    return readings


def gradient_readings(gradients: Mapping[Site, Gradient], structure: Structure | None, step: int) -> Iterator[Reading]:
    """Gradient norms at the layers' outputs, and the gain from each layer's output to that of the layer before it.

    Args:
        gradients: what was seen on the way back.
        structure: tells which layer feeds which.
        step: the optimiser step just done.

    Yields:
        The readings, in the order of `gradients`.
    """
    norms: dict[Site, Reading] = {}
    for site, gradient in gradients.items():
        norms[site] = gradient_norm(gradient.norm, site=site, step=step, n=gradient.samples)
        yield norms[site]
    if structure is None:
        return
    for site, norm in norms.items():
        if site.leaf:
            continue
        # With several sources no single gain describes the layer's backward.
        sources = _observed_sources(structure, site, norms)
        if len(sources) == 1:
            gain = backward_gain(norms[sources[0]], norm)
            if gain is not None:
                yield gain


def normaliser_readings(normalised: Mapping[Site, BatchStatistics], past: Past, step: int) -> Iterator[Reading]:
    """Noise of batch statistics, and how the running averages stand to them.

    Args:
        normalised: what batch normalisers did in the passes trained on. Passes in evaluation mode count where the step
            had no other: then it was they that the step was trained on.
        past: earlier steps; brought up to date.
        step: the optimiser step just done.

    Yields:
        The readings, in the order of `normalised`.
    """
    trained = any(site.phase == "train" for site in normalised)
    for site, current in normalised.items():
        if trained and site.phase != "train":
            continue
        yield from _some(batch_noise(current, site=site, step=step), train_eval_gap(current, site=site, step=step))
        window = past.normalised.setdefault(site, [])
        if window and window[-1].channels != current.channels:
            window.clear()
        window.append(current)
        if len(window) == LAG_WINDOW:
            yield from _some(running_lag(window, site=site, step=step))
            window.clear()


def _observed_sources(structure: Structure, site: Site, norms: Mapping[Site, Reading]) -> list[Site]:
    """The sites of the layers that feed a layer, looking through layers that are not observed."""
    found: list[Site] = []
    pending, passed = list(structure.sources(site.module)), {site.module}
    while pending:
        path = pending.pop()
        source = site.at(module=path)
        if path in passed:
            continue
        passed.add(path)
        if source in norms:
            found.append(source)
        elif path:
            pending += structure.sources(path)
    return found


def _some(*readings: Reading | None) -> list[Reading]:
    """Those that the measures could give."""
    return [each for each in readings if each is not None]


def _dead(site: Site, rectified: ChannelMoments, samples: int, past: Past, step: int) -> Reading | None:
    window = past.channels.setdefault(site, deque(maxlen=DEAD_WINDOW))
    if window and window[-1][0].channels != rectified.channels:
        window.clear()
    window.append((rectified, samples))
    merged = functools.reduce(operator.add, (channels for channels, _ in window))
    return dead_units(merged, site=site, step=step, samples=sum(samples for _, samples in window))
