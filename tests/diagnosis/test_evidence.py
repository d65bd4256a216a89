import math

import numpy as np
import pytest

from holdfast.diagnosis.evidence import series_of, sustained


def test_sign_test_counts_values_that_reach_the_threshold():
    assert sustained(np.array([1.0, 1.0, 1.0, 1.0, 0.0]), 1.0) == pytest.approx(6 / 32)


def test_series_leave_out_other_sites_lags_and_what_is_not_finite(script):
    history = (
        script()
        .drift("a", [0.1, math.nan, 0.3])
        .drift("a", [9.0], lag=250, first=300)
        .drift("a", [5.0], lag=100, first=200)
        .add("parameter-drift", "a", [7.0], port="output", floor=0.1, lag=1)
        .history
    )
    (near,) = series_of(history, "parameter-drift", stream="net", port="input", lag=1)
    assert near.values.tolist() == [0.1, 0.3]
    (far,) = series_of(history, "parameter-drift", stream="net", port="input", phase="probe", lag=100, longest=199)
    assert far.values.tolist() == [5.0]
    assert series_of(history, "parameter-drift", stream="other", port="input") == []
