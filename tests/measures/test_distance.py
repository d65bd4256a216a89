from __future__ import annotations

import math
import re

import pytest

from holdfast.core.errors import StatisticError
from holdfast.measures.distance import gaussian_w2, log_scale_ratio, standardised_mean_shift
from holdfast.stats.moments import Moments

UNIT = Moments(100, 0.0, 100.0, 0.0, 300.0)
CONSTANT = Moments(100, 3.0, 0.0, 0.0, 0.0)


def test_nothing_moved():
    assert [each(UNIT, UNIT) for each in (standardised_mean_shift, log_scale_ratio, gaussian_w2)] == [0.0, 0.0, 0.0]


def test_only_the_mean_shift_depends_on_the_order():
    wide = Moments(100, 2.0, 900.0, 0.0, 24_300.0)
    assert standardised_mean_shift(wide, UNIT) == pytest.approx(2 / 3)
    assert log_scale_ratio(wide, UNIT) == log_scale_ratio(UNIT, wide)
    assert gaussian_w2(wide, UNIT) == gaussian_w2(UNIT, wide)


def test_a_constant_reference_has_no_unit():
    text = "expected moments of values that vary; got 100 values that are all 3; use gaussian_w2, which needs no spread"
    for measure in (standardised_mean_shift, log_scale_ratio):
        with pytest.raises(StatisticError, match=re.escape(text)):
            measure(CONSTANT, UNIT)
    assert gaussian_w2(CONSTANT, UNIT) == pytest.approx(math.hypot(3, 1))


@pytest.mark.parametrize("measure", [standardised_mean_shift, log_scale_ratio, gaussian_w2])
def test_no_data(measure):
    text = "expected moments of some finite values; got moments of none; observe a batch first"
    with pytest.raises(StatisticError, match=re.escape(text)):
        measure(UNIT, Moments.empty())
    with pytest.raises(StatisticError, match=re.escape(text)):
        measure(Moments.empty(), UNIT)
