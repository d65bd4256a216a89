import math

import numpy as np
import pytest

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.shifting_input import ShiftingInput


@pytest.mark.parametrize(("drift", "severity"), [(0.06, "info"), (0.3, "warning"), (5.0, "critical")])
def test_fires_by_effect_above_noise(script, drift, severity):
    one = script().drift("still", [0.0] * 8).drift("moves", [drift] * 8)
    (finding,) = ShiftingInput().check(one.history)
    assert (finding.severity, [site.module for site in finding.sites]) == (severity, ["moves"])
    assert finding.strength == pytest.approx(drift / 0.05)
    assert "reference SD per step (median of 8 observed steps" in finding.message
    assert "95 % interval" in finding.message
    assert "noise floor 0.01, n = 64" in finding.message


def test_ranks_sites_by_drift_and_gives_their_readings(script):
    one = script().drift("a", [0.1] * 6).drift("b", [0.9] * 6).drift("c", [0.4] * 6)
    (finding,) = ShiftingInput().check(one.history)
    assert [site.module for site in finding.sites] == ["b", "c", "a"]
    assert [reading.value for reading in finding.evidence] == [0.9, 0.4, 0.1]
    assert "3 of 3 layers" in finding.message


def test_an_effect_within_noise_is_no_finding(script):
    assert ShiftingInput().check(script().drift("a", [0.4] * 20, floor=0.5).history) == []


def test_a_drift_above_noise_that_is_small_is_no_finding(script):
    assert ShiftingInput().check(script().drift("a", [0.02] * 100, floor=0.001).history) == []


def test_a_large_first_step_alone_is_no_finding(script):
    assert ShiftingInput().check(script().drift("a", [3.0, 1.0] + [0.01] * 20).history) == []


def test_fires_over_a_hundred_steps_without_a_step_probe(script):
    one = script().drift("a", [9.0, 4.0, 5.0, 4.0], lag=100, every=100, first=101)
    (finding,) = ShiftingInput().check(one.history)
    assert finding.severity == "warning"
    assert "per 100 steps" in finding.message


def test_early_displacement_that_settles_is_no_finding(script):
    one = script().drift("a", [30.0, 2.0, 2.0, 0.2], lag=100, every=100, first=101)
    assert ShiftingInput().check(one.history) == []


def test_a_longer_lag_of_the_same_decade_is_left_out(script):
    one = script().drift("a", [9.0] * 4, lag=900, every=900, first=901)
    assert isinstance(ShiftingInput().check(one.history), Inconclusive)


def test_no_drift_is_believed_where_the_signal_is_dead(script):
    one = script()
    for module, sd in (("a", 1.0), ("b", 1e-5), ("c", 1e-7)):
        one.signal(module, [1.0], [sd])
    one.drift("a", [0.001] * 6).drift("b", [60.0] * 6).drift("c", [6000.0] * 6)
    answer = ShiftingInput().check(one.history)
    assert isinstance(answer, Inconclusive)
    assert "at 2 of 3 inputs the samples cannot be told apart" in answer.reason
    assert "at most 0.001 reference SD per step" in answer.reason


def test_believes_the_others_where_one_site_is_dead(script):
    one = script().signal("a", [1.0], [1.0]).signal("b", [1.0], [1.0]).signal("c", [1.0], [1e-6])
    one.drift("a", [0.001] * 6).drift("b", [2.0] * 6).drift("c", [6000.0] * 6)
    (finding,) = ShiftingInput().check(one.history)
    assert [site.module for site in finding.sites] == ["b"]


@pytest.mark.parametrize("steps", [1, 4])
def test_too_few_steps_are_inconclusive_and_say_how_many_are_needed(script, steps):
    answer = ShiftingInput().check(script().drift("a", [2.0] * steps).history)
    assert isinstance(answer, Inconclusive)
    assert f"read at {steps} step" in answer.reason
    assert "needs 5 observed steps" in answer.reason


def test_nan_readings_count_for_nothing(script):
    answer = ShiftingInput().check(script().drift("a", [math.nan] * 20).history)
    assert isinstance(answer, Inconclusive)
    (finding,) = ShiftingInput().check(script().drift("a", [math.nan, 2.0] * 6).history)
    assert finding.severity == "critical"


def test_null_readings_of_many_sites_fire_nothing(script):
    """Above the effect threshold, but only as often above the floor as noise is."""
    generator = np.random.default_rng(1)
    one = script()
    for site in range(50):
        one.drift(f"l{site}", _null(generator), floor=1.0)
    assert ShiftingInput().check(one.history) == []


def _null(generator):
    """A measure whose 95th percentile is 1."""
    return (np.abs(generator.standard_normal(100)) / 1.96).tolist()
