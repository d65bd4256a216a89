from __future__ import annotations

import math

import pytest

from holdfast.core.reading import Reading
from holdfast.measures.parameter_share import parameter_share


def reading(measure, site, value, floor=None, interval=None, n=64):
    return Reading(measure, site, 9, value, "reference SD", n, floor, interval, lag=3)


def test_share_floor_and_interval(site):
    moved = reading("parameter-drift", site, 0.3, 0.1, (0.2, 0.4))
    scatter = reading("sampling-drift", site, 0.4, None, (0.4, 0.4), n=32)
    share = parameter_share(moved, scatter)
    assert share.value == pytest.approx(0.36)
    assert share.noise_floor == pytest.approx(0.01 / 0.17)
    assert share.interval == pytest.approx((0.04 / 0.20, 0.5))
    assert (share.n, share.lag, share.step, share.site) == (32, 3, 9, site)
    assert share.unit == "fraction"


def test_zero_drift_has_share_zero_and_an_interval(site):
    share = parameter_share(
        reading("parameter-drift", site, 0.0, 0.1, (0.0, 0.4)), reading("sampling-drift", site, 0.4, None, (0.3, 0.5))
    )
    assert share.value == 0.0
    assert share.interval == pytest.approx((0.0, 0.5))
    assert not share.above_noise


def test_all_of_it_without_sampling(site):
    assert parameter_share(reading("parameter-drift", site, 0.3), reading("sampling-drift", site, 0.0)).value == 1.0


@pytest.mark.parametrize(("moved", "scatter"), [(0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf)])
def test_none_without_a_ratio(site, moved, scatter):
    assert parameter_share(reading("parameter-drift", site, moved), reading("sampling-drift", site, scatter)) is None
