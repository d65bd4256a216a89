import math

import pytest

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.dead_units import DeadUnits


def _dead(script, values, module="relu", n=640):
    return script().add("dead-units", module, values, port="output", n=n)


@pytest.mark.parametrize(("fraction", "severity"), [(0.25, "info"), (0.5, "warning"), (0.9, "critical")])
def test_fires_by_fraction(script, fraction, severity):
    (finding,) = DeadUnits().check(_dead(script, [fraction] * 6).history)
    assert finding.severity == severity
    assert "zero on all of 640 samples" in finding.message
    assert "fires on less than 0.5 % of samples" in finding.message
    assert finding.evidence[0].value == fraction


def test_a_healthy_share_is_no_finding(script):
    assert DeadUnits().check(_dead(script, [0.15] * 6).history) == []


def test_the_least_of_the_last_readings_decides(script):
    assert DeadUnits().check(_dead(script, [0.9] * 6 + [0.9, 0.1, 0.9]).history) == []
    assert len(DeadUnits().check(_dead(script, [0.1] * 6 + [0.9] * 5).history)) == 1


def test_too_few_samples_are_inconclusive(script):
    answer = DeadUnits().check(_dead(script, [0.9], n=64).history)
    assert isinstance(answer, Inconclusive)
    assert "64 samples; 100 are needed" in answer.reason


def test_a_network_without_rectifiers_is_well_and_nan_is_no_reading(script):
    assert DeadUnits().check(script().drift("fc", [0.1] * 5).history) == []
    assert DeadUnits().check(_dead(script, [math.nan] * 6).history) == []
