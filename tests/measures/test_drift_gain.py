from __future__ import annotations

import math

import pytest

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.measures.drift_gain import drift_gain


def drift(value, floor=0.01, interval=None, port="input", n=64):
    return Reading("parameter-drift", Site("fc", port), 3, value, "reference SD", n, floor, interval, lag=10)


def test_output_over_input(site):
    gain = drift_gain(drift(0.1, interval=(0.05, 0.2)), drift(0.4, interval=(0.4, 0.4), port="output", n=32))
    assert gain.value == pytest.approx(4.0)
    assert gain.interval == pytest.approx((2.0, 8.0))
    assert (gain.site, gain.n, gain.lag, gain.unit) == (Site("fc", "output"), 32, 10, "ratio")
    elsewhere = drift_gain(drift(0.1), drift(0.4), site=site, step=8, lag=1)
    assert (elsewhere.site, elsewhere.step, elsewhere.lag, elsewhere.interval) == (site, 8, 1, None)


def test_an_interval_that_reaches_zero_gives_an_open_end():
    gain = drift_gain(drift(0.1, interval=(0.0, 0.2)), drift(0.4, interval=(0.0, 0.5), port="output"))
    assert gain.interval == (0.0, math.inf)


@pytest.mark.parametrize(("into", "out"), [(0.005, 0.4), (0.4, 0.005), (0.0, 0.4), (math.nan, 0.4), (0.4, math.inf)])
def test_none_within_noise(into, out):
    assert drift_gain(drift(into), drift(out, port="output")) is None
    assert drift_gain(drift(0.0, floor=None), drift(0.4)) is None
