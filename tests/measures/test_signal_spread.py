import math

import numpy as np
import pytest

from holdfast.core.site import Site
from holdfast.measures.signal_spread import signal_spread, spread_of
from holdfast.stats.channels import ChannelMoments


def _moments(mean, sd, n=64):
    count = np.full(len(mean), float(n))
    return ChannelMoments(count, np.array(mean, float), count * np.array(sd, float) ** 2, np.zeros(len(mean)))


def test_spread_is_the_part_that_varies():
    assert spread_of(_moments([0.0, 0.0], [1.0, 2.0])) == 1
    assert spread_of(_moments([3.0], [4.0])) == pytest.approx(0.8)
    assert spread_of(_moments([1.0], [0.0])) == 0


def test_a_few_huge_constants_do_not_hide_the_signal():
    assert spread_of(_moments([1e6, 0.0, 0.0], [0.0, 1.0, 1.0])) == pytest.approx(1)


def test_a_few_varying_channels_among_constants_carry_signal():
    assert spread_of(_moments([1.0] * 9 + [0.0], [0.0] * 9 + [1.0])) == pytest.approx(math.sqrt(0.1))


def test_no_figure_without_data_or_signal():
    assert math.isnan(spread_of(_moments([0.0, 0.0], [0.0, 0.0])))
    assert math.isnan(spread_of(_moments([1.0], [1.0], n=7)))
    assert math.isnan(spread_of(ChannelMoments.empty()))


def test_the_reading_tells_its_samples():
    reading = signal_spread(_moments([3.0], [4.0]), site=Site("fc", "input"), step=2, samples=16)
    assert reading is not None
    assert (reading.measure, reading.value, reading.unit, reading.n) == (
        "signal-spread",
        pytest.approx(0.8),
        "ratio",
        16,
    )
    assert signal_spread(ChannelMoments.empty(), site=Site("fc", "input"), step=2) is None
