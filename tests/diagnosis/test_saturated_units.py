import math

import pytest

from holdfast.core.finding import Inconclusive
from holdfast.core.structure import FunctionalCall, Structure
from holdfast.diagnosis.saturated_units import SaturatedUnits


@pytest.mark.parametrize(("fraction", "severity"), [(0.15, "info"), (0.3, "warning"), (0.8, "critical")])
def test_fires_by_fraction(script, fraction, severity):
    one = script().add("saturated-fraction", "well", [0.02] * 10).add("saturated-fraction", "act", [fraction] * 10)
    (finding,) = SaturatedUnits().check(one.history)
    assert (finding.severity, [site.module for site in finding.sites]) == (severity, ["act"])
    assert "n = 64 samples" in finding.message
    assert "1 of 2 activations" in finding.message


def test_how_things_are_now_decides(script):
    recovered = script().add("saturated-fraction", "act", [0.9] * 10 + [0.01] * 10)
    assert SaturatedUnits().check(recovered.history) == []
    fell = script().add("saturated-fraction", "act", [0.01] * 10 + [0.9] * 10)
    (finding,) = SaturatedUnits().check(fell.history)
    assert "90 % of the values" in finding.message
    assert "1 % at the first" in finding.message


def test_now_and_then_is_not_sustained(script):
    one = script().add("saturated-fraction", "act", [0.0, 0.11, 0.11, 0.0, 0.11, 0.11, 0.0, 0.11, 0.0, 0.11])
    assert SaturatedUnits().check(one.history) == []


def test_one_step_is_judged_by_its_samples(script):
    assert len(SaturatedUnits().check(script().add("saturated-fraction", "act", [0.5], n=64).history)) == 1
    assert SaturatedUnits().check(script().add("saturated-fraction", "act", [0.13], n=64).history) == []


def test_a_network_without_such_activations_is_well(script):
    assert SaturatedUnits().check(script().drift("fc", [0.1] * 5).history) == []


def test_too_few_samples_are_inconclusive(script):
    answer = SaturatedUnits().check(script().add("saturated-fraction", "act", [0.9], n=8).history)
    assert isinstance(answer, Inconclusive)
    assert "read on 8 samples; it needs 16 at a step" in answer.reason


def test_nan_is_no_reading(script):
    one = script().add("saturated-fraction", "act", [math.nan] * 10)
    assert SaturatedUnits().check(one.history) == []


def _calling(script, name, owner="block"):
    one = script().drift("fc", [0.1] * 5)
    one.run.describe(Structure("net", "Net", (), functional=(FunctionalCall(name, owner),)))
    return one


def test_what_a_function_takes_is_judged_at_the_output_of_the_layer_before_it(script):
    one = script().add("saturated-fraction", "act", [0.3] * 10)
    one.add("saturated-fraction", "fc", [0.8] * 10, port="output")
    (finding,) = SaturatedUnits().check(one.history)
    assert [(site.module, site.port) for site in finding.sites] == [("fc", "output"), ("act", "input")]
    assert "at the output of 'fc'" in finding.message
    assert "2 of 2 activations" in finding.message


@pytest.mark.parametrize("name", ["sigmoid", "tanh_"])
def test_a_function_of_which_nothing_was_read_is_inconclusive(script, name):
    answer = SaturatedUnits().check(_calling(script, name).history)
    assert isinstance(answer, Inconclusive)
    assert f"the function `{name}` in 'block' was not read" in answer.reason


def test_a_function_of_another_kind_or_beside_one_that_was_read_leaves_it_decided(script):
    assert SaturatedUnits().check(_calling(script, "relu").history) == []
    beside = _calling(script, "tanh").add("saturated-fraction", "act", [0.02] * 10)
    assert SaturatedUnits().check(beside.history) == []
