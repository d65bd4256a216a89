import math

from holdfast.stats.extremes import Extremes


def test_the_extremes_of_both():
    assert Extremes(-1.0, 2.0) + Extremes(-3.0, 1.0) == Extremes(-3.0, 2.0)


def test_no_data_lie_between_nothing():
    assert Extremes.empty() == Extremes(math.inf, -math.inf)
    assert Extremes.empty() + Extremes(5.0, 5.0) == Extremes(5.0, 5.0)
