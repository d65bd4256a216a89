from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.measures.depth_slope import depth_slope
from holdfast.measures.drift_amplification import amplification
from holdfast.measures.gradient_slope import gradient_slope

ROOT = Site("", "output")


def test_is_ordinary_least_squares():
    stats = pytest.importorskip("scipy.stats")
    logs = np.random.default_rng(0).normal(size=7) + 0.4 * np.arange(7)
    slope, (low, high), n = depth_slope(np.exp(logs).tolist())
    fit = stats.linregress(np.arange(7), logs)
    assert slope == pytest.approx(fit.slope)
    assert (high - low) / 2 == pytest.approx(fit.stderr * stats.t.ppf(0.975, 5))
    assert n == 7


def test_a_missing_layer_keeps_its_place():
    slope, (low, high), n = depth_slope([1.0, math.nan, math.e**2, None, math.e**4, 0.0, math.inf])
    assert (slope, low, high, n) == (pytest.approx(1.0), pytest.approx(1.0), pytest.approx(1.0), 3)


@pytest.mark.parametrize("layers", [3, 4, 10])
def test_interval_covers(layers):
    """Layers scattered about a slope of 0.1: the interval covers it in 93 to 97 % of 2,000 trials."""
    generator = np.random.default_rng(layers)
    hits = 0
    for _ in range(2000):
        values = np.exp(0.1 * np.arange(layers) + 0.3 * generator.normal(size=layers))
        _, (low, high), _ = depth_slope(values.tolist())
        hits += low <= 0.1 <= high
    assert 0.93 * 2000 <= hits <= 0.97 * 2000


def test_amplification_leaves_out_what_is_within_noise():
    drifts = [
        Reading("parameter-drift", Site(f"fc{k}", "input"), 3, 0.1 * 2.0**k, "reference SD", 64, 0.01, lag=10)
        for k in range(5)
    ]
    drifts[2] = Reading("parameter-drift", Site("fc2", "input"), 3, 9.0, "reference SD", 64, 10.0, lag=10)
    reading = amplification([*drifts, None], site=ROOT, step=3)
    assert reading.value == pytest.approx(math.log(2))
    assert (reading.n, reading.lag, reading.unit, reading.site) == (4, 10, "per layer", ROOT)
    assert amplification(drifts[:3], site=ROOT, step=3) is None
    assert amplification([], site=ROOT, step=3) is None


def test_gradient_that_halves_on_its_way_back():
    norms = [Reading("gradient-norm", Site(f"fc{k}", "grad_output"), 3, 2.0**k, "L2 norm", 64) for k in range(10)]
    reading = gradient_slope(norms, site=ROOT, step=3)
    assert reading.value == pytest.approx(math.log(2))
    assert reading.interval == pytest.approx((math.log(2), math.log(2)))
    assert gradient_slope(norms[:2], site=ROOT, step=3) is None
