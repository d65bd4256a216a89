from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.measures.wasserstein1 import wasserstein1, wasserstein1_error
from holdfast.stats.observation import observe
from holdfast.stats.sketch import Sketch, edges


def sketch_of(values, exponent=-2):
    return observe(torch.as_tensor(np.asarray(values))[:, None, None], exponent=exponent).summary.sketch


def draw(n, seed):
    return np.random.default_rng(seed).standard_t(4, size=n)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (40, 40), (40, 7), (3, 200)])
def test_of_samples_is_scipys(n, m):
    stats = pytest.importorskip("scipy.stats")
    x, y = draw(n, 0), 0.3 + 2 * draw(m, 1)
    x[: n // 3] = 0.0  # ties, within and across
    y[: m // 3] = 0.0
    assert wasserstein1(x, y) == pytest.approx(stats.wasserstein_distance(x, y), rel=1e-12)


def test_takes_tensors_of_any_float_type():
    x, y = torch.tensor([0.0, 1.0], dtype=torch.bfloat16), torch.tensor([2.0, 3.0], requires_grad=True)
    assert wasserstein1(x, y) == 2.0


def test_of_sketches_is_that_of_their_densities():
    """Piecewise constant densities: 200,000 points spread evenly within each bin, by SciPy."""
    stats = pytest.importorskip("scipy.stats")
    a, b = sketch_of(draw(500, 0)), sketch_of(0.2 + 1.4 * draw(300, 1))
    ends = edges(-2)
    points = np.concatenate(
        [np.linspace(low, high, 3001)[:-1] + (high - low) / 6000 for low, high in itertools.pairwise(ends)]
    )
    weights = [np.repeat(np.array(each.bins) / each.count / 3000, 3000) for each in (a, b)]
    assert wasserstein1(a, b) == pytest.approx(stats.wasserstein_distance(points, points, *weights), rel=1e-4)


@pytest.mark.parametrize("seed", range(30))
def test_the_error_of_sketches_keeps_its_bound(seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=generator.integers(2, 400)) * np.exp(generator.normal()) + generator.normal()
    y = generator.exponential(size=generator.integers(2, 400)) * np.exp(generator.normal()) - generator.normal()
    a, b = sketch_of(x), sketch_of(y)
    assert abs(wasserstein1(a, b) - wasserstein1(x, y)) <= wasserstein1_error(a, b)


def test_the_bound_is_reached():
    """All values at the lower edges of their bins on one side, at the upper ends on the other."""
    low, high = edges(0)[40:42].tolist()
    x, y = np.full(9, low), np.full(9, high * (1 - 1e-12))
    a, b = sketch_of(x, 0), sketch_of(y, 0)
    assert a == b
    assert wasserstein1(a, b) == 0.0
    assert wasserstein1_error(a, b) == high - low
    assert wasserstein1(x, y) == pytest.approx(wasserstein1_error(a, b), rel=1e-9)


def test_what_the_card_says_of_smooth_densities():
    """At the scale that a site's sketch chooses: errors below 0.01 RMS, bounds at most 0.25 RMS."""
    for seed, (shift, scale) in enumerate([(0.0, 1.0), (0.1, 1.0), (0.0, 1.2), (1.0, 0.7)]):
        generator = np.random.default_rng(seed)
        x, y = generator.normal(size=20_000), shift + scale * generator.normal(size=20_000)
        for rms in (0.51, 0.7, 0.99):  # where the RMS lies between two powers of two
            pair = [sketch_of(rms * each, Sketch.exponent_for(rms)) for each in (x, y)]
            assert wasserstein1(*pair) == pytest.approx(rms * wasserstein1(x, y), abs=0.01 * rms)
            assert wasserstein1_error(*pair) < 0.25 * rms


def test_values_beyond_the_edges_have_no_bound():
    a, b = sketch_of([0.5, 1e30], 0), sketch_of([0.5, 0.6], 0)
    assert wasserstein1_error(b, b) < 0.3
    assert wasserstein1_error(a, b) == math.inf


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (np.zeros((3, 2)), np.zeros(3), "expected values (samples,); got shape (3, 2); pass one feature, x[:, 0], or"),
        (np.zeros(0), np.zeros(3), "expected at least one sample; got shape (0,)"),
        (np.array([1.0, math.nan]), np.zeros(3), "expected finite values; got 1 that are not; leave them out:"),
        (Sketch.empty(), Sketch.empty(), "expected a sketch of some finite values; got a sketch of none"),
        (sketch_of([1.0], 0), sketch_of([1.0], 1), "expected a sketch of scale 2**0; got one of scale 2**1"),
        (sketch_of([1.0], 0), np.ones(3), "got a sketch; compare two samples, or two sketches"),
        (np.ones(3), sketch_of([1.0], 0), "got a sketch; compare two samples, or two sketches"),
    ],
)
def test_bad_input(x, y, text):
    with pytest.raises(StatisticError, match=re.escape(text)):
        wasserstein1(x, y)
