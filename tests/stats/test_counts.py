import math

from holdfast.stats.counts import Counts


def test_fractions_are_of_the_finite_values():
    counts = Counts(total=20, zeros=4, nan=1, positive_inf=2, negative_inf=1, beyond=8)
    assert (counts.nonfinite, counts.finite) == (4, 16)
    assert (counts.zero_fraction, counts.beyond_fraction, counts.nonfinite_fraction) == (0.25, 0.5, 0.2)


def test_fractions_of_nothing_are_nan():
    empty, all_nan = Counts.empty(), Counts(3, 0, 3, 0, 0, 0)
    assert math.isnan(empty.zero_fraction)
    assert math.isnan(empty.nonfinite_fraction)
    assert math.isnan(all_nan.beyond_fraction)
    assert all_nan.nonfinite_fraction == 1


def test_merging_adds_each_kind():
    assert Counts(1, 2, 3, 4, 5, 6) + Counts(10, 20, 30, 40, 50, 60) == Counts(11, 22, 33, 44, 55, 66)
