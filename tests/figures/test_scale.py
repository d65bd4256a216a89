from __future__ import annotations

import math

import pytest

from holdfast.figures.scale import log_axis, log_ticks


@pytest.mark.parametrize("low", [1e-9, 0.37, 5.0])
@pytest.mark.parametrize("span", [1.2, 5, 90, 1e4, 1e30])
def test_ticks_lie_inside_and_are_few_but_enough(low, span):
    ticks = log_ticks(low, low * span)
    assert all(low * 0.999 <= tick <= low * span * 1.001 for tick in ticks)
    assert (1 if span < 2 else 2) <= len(ticks) <= 14
    assert ticks == sorted(ticks)


@pytest.mark.parametrize("values", [[], [math.nan, -1.0, 0.0], [3.0]])
def test_an_axis_without_spread_is_still_an_axis(values):
    axis = log_axis(values)
    low, high = axis["range"]
    assert low < high
    assert axis["ticktext"]
