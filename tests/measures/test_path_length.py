from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from holdfast.core.errors import StatisticError
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.measures.path_length import path_length

SITE = Site("fc", "input", phase="probe")


def leg(step, value, lag=1, n=64):
    return Reading("parameter-drift", SITE, step, value, "reference SD", n, 0.02, (0.9 * value, 1.2 * value), lag)


def test_is_the_sum_where_every_step_was_seen():
    reading = path_length([leg(1, 0.1), leg(2, 0.3), leg(5, 0.6, lag=3, n=32)], lag=5)
    assert reading.value == pytest.approx(1.0)
    assert reading.interval == pytest.approx((0.9, 1.2))
    assert reading.noise_floor == pytest.approx(0.06)
    assert (reading.step, reading.lag, reading.n, reading.site) == (5, 5, 32, SITE)
    assert path_length([leg(7, 0.4)], lag=1).value == 0.4


def test_stands_for_the_steps_not_seen():
    legs = [leg(10 * k, 0.1) for k in range(1, 11)]
    reading = path_length(legs, lag=100)
    assert reading.value == pytest.approx(10.0)
    assert reading.interval == pytest.approx((9.0, 12.0))  # equal legs: nothing is added for what was not seen
    assert reading.noise_floor == pytest.approx(2.0)


@pytest.mark.parametrize("seen", [8, 30])
def test_the_interval_holds_what_was_not_seen(seen):
    """Steps of gamma length (CV ½), some of 40 seen, each exactly: 95 % of 400 intervals hold the sum of all 40."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        steps = generator.gamma(4, size=40)
        chosen = generator.choice(40, seen, replace=False)
        legs = [replace(leg(k, float(steps[k])), interval=(float(steps[k]),) * 2) for k in chosen.tolist()]
        low, high = path_length(legs, lag=40).interval
        held += low <= steps.sum() <= high
    assert 367 <= held <= 393


def test_legs_without_an_interval_or_a_floor():
    reading = path_length([leg(1, 0.1), replace(leg(2, 0.1), interval=None, noise_floor=None)], lag=2)
    assert (reading.interval, reading.noise_floor) == (None, None)


def test_no_figure():
    assert path_length([], lag=10) is None
    assert path_length([leg(1, 0.1)], lag=10) is None
    assert path_length([leg(1, 0.1), leg(2, math.nan)], lag=10) is None


def test_overlapping_legs_are_refused():
    with pytest.raises(StatisticError, match=re.escape("legs within 3 steps; got legs over 4; leave out legs")):
        path_length([leg(2, 0.1, lag=2), leg(3, 0.1, lag=2)], lag=3)
