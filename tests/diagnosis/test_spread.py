import math

import numpy as np
import pytest

from holdfast.diagnosis.spread import DEAD_SPREAD, dead_modules, spread, spreads
from holdfast.stats.channels import ChannelMoments


def _moments(mean, sd, n=64):
    count = np.full(len(mean), float(n))
    return ChannelMoments(count, np.array(mean, float), count * np.array(sd, float) ** 2, np.zeros(len(mean)))


def test_spread_is_the_part_that_varies():
    assert spread(_moments([0.0, 0.0], [1.0, 2.0])) == 1
    assert spread(_moments([3.0], [4.0])) == pytest.approx(0.8)
    assert spread(_moments([1.0], [0.0])) == 0


def test_a_few_huge_constants_do_not_hide_the_signal():
    assert spread(_moments([1e6, 0.0, 0.0], [0.0, 1.0, 1.0])) == pytest.approx(1)


def test_a_few_varying_channels_among_constants_carry_signal():
    assert spread(_moments([1.0] * 9 + [0.0], [0.0] * 9 + [1.0])) == pytest.approx(math.sqrt(0.1))


def test_no_figure_without_data_or_signal():
    assert math.isnan(spread(_moments([0.0, 0.0], [0.0, 0.0])))
    assert math.isnan(spread(_moments([1.0], [1.0], n=7)))
    assert math.isnan(spread(ChannelMoments.empty()))


def test_readings_come_before_merged_channels(script):
    history = script().signal("a", [1.0], [1.0]).add("signal-spread", "a", [1e-6] * 3).history
    assert [reading.value for readings in spreads(history, "net").values() for reading in readings] == [1e-6] * 3
    assert dead_modules(history, "net") == {"a": 1e-6}


def test_dead_modules_are_below_the_threshold_or_mostly_collapsed(script):
    history = (
        script()
        .signal("well", [0.5], [0.5])
        .signal("dead", [0.5], [0.4 * DEAD_SPREAD])
        .add("collapsed-features", "well", [0.6] * 5)  # dead rectifiers beside living ones
        .add("collapsed-features", "gone", [0.9] * 5)
        .history
    )
    dead = dead_modules(history, "net")
    assert list(dead) == ["dead", "gone"]
    assert math.isnan(dead["gone"])
