"""Profiles over depth: a figure of each layer with weights, in the order of execution, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from holdfast.core.protocols import History
from holdfast.core.site import Site
from holdfast.diagnosis.evidence import Series
from holdfast.measures.student import NORMAL_975


class Slope(NamedTuple):
    """Slope of a natural logarithm over depth, one layer a step, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        """By how much the figure is multiplied from one layer to the next."""
        return math.exp(self.value)


@dataclass(frozen=True, slots=True)
class Profile:
    """Positive figures of layers at steps.

    Args:
        sites: one a layer, in the order of execution.
        depth: of each, counted in layers with weights.
        steps: observed.
        values: `(steps, layers)`; NaN where there is none.
    """

    sites: tuple[Site, ...]
    depth: tuple[int, ...]
    steps: tuple[int, ...]
    values: Float64[ndarray, "steps layers"]

    @property
    def span(self) -> int:
        """Layers between the first and the last."""
        return self.depth[-1] - self.depth[0] if self.depth else 0

    @property
    def medians(self) -> Float64[ndarray, layers]:
        """Of each layer over the steps that have a figure for it."""
        return np.array([np.median(column[np.isfinite(column)]) for column in self.values.T])

    def slopes(self) -> Float64[ndarray, observed]:
        """The slope at each step, of those steps that have at least three layers."""
        slopes = (_theil_sen(self.depth, row) for row in self.values)
        return np.array([slope for slope in slopes if math.isfinite(slope)])

    def slope(self) -> Slope:
        """Theil–Sen slope of the layers' medians: half of the layers may be odd without moving it.

        Its interval (Sen 1968) comes from the scatter of the layers about the trend: between the pairwise slopes that
        Kendall's S, were there no trend, would leave out at 2.5 % on each side.
        """
        x, y = np.array(self.depth, np.float64), np.log(self.medians)
        slopes = np.sort(_pairwise(x, y))
        n = len(x)
        tied = sum(_disorder(count) for each in (x, y) for count in np.unique(each, return_counts=True)[1].tolist())
        half = NORMAL_975 * math.sqrt(max(_disorder(n) - tied, 0) / 18)
        low = max(round((len(slopes) - half) / 2) - 1, 0)
        high = min(round((len(slopes) + half) / 2), len(slopes) - 1)
        return Slope(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))


def _theil_sen(depth: Sequence[int], values: Float64[ndarray, layers]) -> float:
    usable = np.isfinite(values) & (values > 0)
    if usable.sum() < 3:
        return math.nan
    slopes = _pairwise(np.array(depth, np.float64)[usable], np.log(values[usable]))
    return float(np.median(slopes)) if len(slopes) else math.nan


def _pairwise(x: Float64[ndarray, layers], y: Float64[ndarray, layers]) -> Float64[ndarray, pairs]:
    """Slopes between all pairs of points, `x` ascending, those of equal `x` left out."""
    i, j = np.triu_indices(len(x), 1)
    apart = x[j] > x[i]
    slopes: Float64[ndarray, pairs] = (y[j] - y[i])[apart] / (x[j] - x[i])[apart]
    return slopes


def _disorder(n: int) -> int:
    """18 times the variance of Kendall's S for `n` points in any order."""
    return n * (n - 1) * (2 * n + 5)


def weight_layers(history: History, stream: str) -> tuple[str, ...]:
    """Paths of the layers that mix features by a weight, in the order of execution.

    With a structure: leaves with a parameter of two or more dimensions, embeddings left out (their output's scale says
    nothing about their input's). Without one: modules that have a reading of a weight gradient; without those too:
    all modules whose input was observed.

    Args:
        history: of a run.
        stream: which model.

    Returns:
        Paths, the first layer first.
    """
    structure = history.structure(stream)
    observed = list(dict.fromkeys(site.module for site in history.sites(port="input", stream=stream)))
    if structure is not None:
        order = structure.order or tuple(node.path for node in structure.modules if node.leaf)
        mixing = {
            node.path
            for node in structure.modules
            if not node.kind.startswith("Embedding") and any(len(each.shape) >= 2 for each in node.parameters)
        }
        return tuple(path for path in order if path in mixing)
    learning = {site.module for site in history.sites(port="weight_grad", stream=stream)}
    return tuple(path for path in observed if not learning or path in learning)


def weights_only(history: History, groups: Sequence[Series], stream: str) -> list[Series]:
    """Of readings of parameters those of weights that mix features; biases and gains start at 0 or 1 and are left out.

    Args:
        history: of a run; without a structure a parameter is known by its name.
        groups: one measure's readings by site, the parameter's name as `leaf`.
        stream: which model.

    Returns:
        Those that stay, in their order.
    """
    structure = history.structure(stream)
    if structure is None:
        return [series for series in groups if "bias" not in series.site.leaf]
    mixing = {
        (node.path, each.name.rpartition(".")[2])
        for node in structure.modules
        for each in node.parameters
        if len(each.shape) >= 2
    }
    return [series for series in groups if (series.site.module, series.site.leaf) in mixing]


def profile_of(groups: Sequence[Series], layers: Sequence[str]) -> Profile:
    """Readings of the layers with weights, as a matrix. Zeros and repeated calls are left out.

    Args:
        groups: one measure's readings by site.
        layers: paths in the order of execution.

    Returns:
        The profile; without layers when no site belongs to one.
    """
    place = {path: index for index, path in enumerate(layers)}
    # A layer with several weights (a recurrent one) is told by its first.
    first: dict[str, Series] = {}
    for series in groups:
        if series.site.call == 0 and series.site.module in place and np.any(series.values > 0):
            first.setdefault(series.site.module, series)
    chosen = sorted(first.values(), key=lambda series: place[series.site.module])
    steps = sorted({reading.step for series in chosen for reading in series.readings})
    row = {step: index for index, step in enumerate(steps)}
    values = np.full((len(steps), len(chosen)), np.nan)
    for column, series in enumerate(chosen):
        for reading in series.readings:
            if reading.value > 0:
                values[row[reading.step], column] = reading.value
    return Profile(
        tuple(series.site for series in chosen),
        tuple(place[series.site.module] for series in chosen),
        tuple(steps),
        values,
    )
