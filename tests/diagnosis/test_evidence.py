import math

import numpy as np
import pytest
from scipy import stats

from holdfast.diagnosis.evidence import discoveries, exceedance, series_of, sustained


def test_exceedance_is_the_upper_tail_of_the_binomial():
    naive = sum(math.comb(20, k) * 0.05**k * 0.95 ** (20 - k) for k in range(4, 21))
    assert exceedance(4, 20) == pytest.approx(naive)
    assert exceedance(0, 20) == pytest.approx(1)
    assert exceedance(0, 0) == 1


def test_sign_test_counts_values_that_reach_the_threshold():
    assert sustained(np.array([1.0, 1.0, 1.0, 1.0, 0.0]), 1.0) == pytest.approx(6 / 32)


def test_discoveries_are_benjamini_hochberg():
    p = [0.001, 0.012, 0.021, 0.04, 0.9]
    step_up = [value <= 0.05 * rank / 5 for rank, value in enumerate(p, 1)]
    assert step_up == [True, True, True, True, False]
    assert discoveries(p) == step_up
    assert discoveries([0.04] + [0.5] * 20) == [False] * 21


def test_tails_and_discoveries_are_scipys():
    generator = np.random.default_rng(0)
    for observed in (1, 7, 400):
        for exceeding in {0, 1, observed // 2, observed}:
            assert exceedance(exceeding, observed) == pytest.approx(stats.binom.sf(exceeding - 1, observed, 0.05))
    for count in (1, 5, 200):
        p = (generator.random(count) ** 4).tolist()
        assert discoveries(p) == (stats.false_discovery_control(p) <= 0.05).tolist()


def test_noise_at_many_sites_is_rarely_a_discovery():
    """Fifty sites, 100 steps, readings above their floors 5 % of the time: at most 5 % of such runs say anything."""
    generator = np.random.default_rng(0)
    counts = generator.binomial(100, 0.05, (400, 50))
    p_value = [exceedance(k, 100) for k in range(101)]
    runs = [any(discoveries([p_value[k] for k in row])) for row in counts]
    assert np.mean(runs) <= 0.07


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
