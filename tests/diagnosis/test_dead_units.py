import math

import pytest

from holdfast.core.finding import Inconclusive
from holdfast.core.structure import FunctionalCall, Structure
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


def _calling(script, name):
    one = script().drift("fc", [0.1] * 5)
    one.run.describe(Structure("net", "Net", (), functional=(FunctionalCall(name, "block"),)))
    return one


def test_a_function_of_which_nothing_was_read_is_inconclusive(script):
    answer = DeadUnits().check(_calling(script, "relu").history)
    assert isinstance(answer, Inconclusive)
    assert "the function `relu` in 'block' was not read" in answer.reason


def test_a_function_that_does_not_rectify_or_stands_beside_one_that_was_read_leaves_it_decided(script):
    assert DeadUnits().check(_calling(script, "gelu").history) == []
    beside = _calling(script, "relu").add("dead-units", "relu", [0.1] * 6, port="output", n=640)
    assert DeadUnits().check(beside.history) == []
