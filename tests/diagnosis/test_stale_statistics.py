import numpy as np
import pytest

from holdfast.core.finding import Inconclusive
from holdfast.core.structure import ModuleNode, Structure
from holdfast.diagnosis.stale_statistics import StaleStatistics


def lagging(script, values, *, module="0", noise=True, phase="train", **more):
    one = script().add("running-lag", module, values, floor=0.1, every=5, first=35, phase=phase, **more)
    if noise and phase == "train":
        one.add("batch-noise", module, [0.1] * 5, first=31)
    return one


@pytest.mark.parametrize(("lag", "severity"), [(0.3, "info"), (0.6, "warning"), (4.0, "critical")])
def test_fires_by_effect_above_noise(script, lag, severity):
    (finding,) = StaleStatistics().check(lagging(script, [lag] * 6).history)
    assert (finding.severity, finding.treatments) == (severity, ("re-estimate",))
    assert "always on the same side (median of the last 3 windows of five observed steps" in finding.message
    assert "noise floor 0.1" in finding.message


def test_within_noise_small_or_over_is_no_finding(script):
    assert StaleStatistics().check(lagging(script, [0.09] * 20).history) == []
    assert StaleStatistics().check(lagging(script, [0.2] * 20).history) == []
    assert StaleStatistics().check(lagging(script, [2.0] * 4 + [0.05] * 6).history) == []


def test_exceedances_as_frequent_as_chance_are_no_finding(script):
    generator = np.random.default_rng(0)
    one = script()
    for site in range(30):
        values = np.abs(generator.standard_normal(20)) / 1.96
        one.add("running-lag", f"l{site}", values, floor=1.0, every=5, first=35)
        one.add("batch-noise", f"l{site}", [0.1] * 5)
    assert StaleStatistics().check(one.history) == []


def test_too_few_windows_are_inconclusive(script):
    answer = StaleStatistics().check(lagging(script, [3.0] * 2).history)
    assert isinstance(answer, Inconclusive)
    assert "was read 2 times at a layer; it needs 3" in answer.reason


def test_a_frozen_layer_is_a_remark(script):
    (finding,) = StaleStatistics().check(lagging(script, [3.0] * 6, noise=False).history)
    assert finding.severity == "info"
    assert "it is frozen: it trains with them too" in finding.message


def test_a_model_trained_in_eval_mode_is_told(script):
    (finding,) = StaleStatistics().check(lagging(script, [3.0] * 6, phase="eval").history)
    assert finding.severity == "critical"
    assert "the model is trained in eval mode" in finding.message


def test_a_small_momentum_is_named(script):
    one = lagging(script, [0.6] * 6)
    node = ModuleNode("0", "BatchNorm2d", ("BatchNorm2d", "_BatchNorm"), True, settings={"momentum": 1e-3})
    one.run.describe(Structure("net", "Net", (node,)))
    (finding,) = StaleStatistics().check(one.history)
    assert "at momentum 0.001 they hold 94 % of their start after 60 steps" in finding.message


def test_layers_without_running_statistics_are_well(script):
    assert StaleStatistics().check(script().add("batch-noise", "a", [0.1] * 60).history) == []
