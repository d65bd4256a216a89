import math

import numpy as np
import pytest

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.update_ratio import UpdateRatio


def _run(script, ratios, steps=8, leaf="weight"):
    one = script()
    for module, ratio in ratios.items():
        one.add("update-ratio", module, [ratio] * steps, port="update", leaf=leaf, n=4096)
    return one


@pytest.mark.parametrize(("ratio", "severity"), [(0.05, "info"), (0.2, "warning"), (0.8, "critical")])
def test_fires_on_large_updates(script, ratio, severity):
    (finding,) = UpdateRatio().check(_run(script, {"a": 1e-3, "head": ratio}).history)
    assert (finding.severity, [site.module for site in finding.sites]) == (severity, ["head"])
    assert "'head.weight'" in finding.message
    assert "n = 4,096 elements" in finding.message


def test_fires_on_updates_below_the_resolution_beside_others(script):
    (finding,) = UpdateRatio().check(_run(script, {"a": 1e-11, "b": 1e-3}).history)
    assert (finding.severity, finding.sites[0].module) == ("warning", "a")
    assert finding.evidence[-1].site.module == "b"


@pytest.mark.parametrize("ratios", [{"a": 1e-3, "b": 5e-3}, {"a": 1e-9, "b": 1e-9}, {"a": 0.0, "b": 1e-3}])
def test_usual_equal_and_frozen_updates_are_well(script, ratios):
    assert UpdateRatio().check(_run(script, ratios).history) == []


def test_biases_are_left_out(script):
    one = _run(script, {"a": 1e-3}).add("update-ratio", "a", [0.9] * 8, port="update", leaf="bias")
    assert UpdateRatio().check(one.history) == []


def test_half_of_the_steps_is_not_agreement(script):
    one = script().add("update-ratio", "a", [0.3, 0.01] * 6, port="update", leaf="weight")
    assert UpdateRatio().check(one.history) == []


def test_noise_about_the_threshold_at_many_sites_fires_nothing(script):
    generator = np.random.default_rng(0)
    one = script()
    for k in range(50):
        values = 0.0199 * np.exp(0.3 * generator.standard_normal(100))
        one.add("update-ratio", f"l{k}", values, port="update", leaf="weight")
    assert UpdateRatio().check(one.history) == []


def test_too_few_steps_and_nan_are_inconclusive(script):
    answer = UpdateRatio().check(_run(script, {"a": 0.9}, steps=4).history)
    assert isinstance(answer, Inconclusive)
    assert "at 4 steps; it needs 5" in answer.reason
    assert isinstance(UpdateRatio().check(_run(script, {"a": math.nan}).history), Inconclusive)
