import math

import numpy as np
import pytest

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.exploding_gradient import ExplodingGradient


def _norms(factor, layers=8):
    return {f"l{k}": factor ** (layers - 1 - k) for k in range(layers)}


@pytest.mark.parametrize(("factor", "severity"), [(2.5, "warning"), (5.0, "critical")])
def test_fires_by_depth(script, factor, severity):
    (finding,) = ExplodingGradient().check(script().layers(*_norms(1)).gradients(_norms(factor)).history)
    assert finding.severity == severity
    assert "grows on its way back from 1 at 'l7'" in finding.message
    assert f"×{factor:g} per layer" in finding.message


@pytest.mark.parametrize("factor", [0.2, 1.0, 1.2])
def test_does_not_fire_by_depth(script, factor):
    assert ExplodingGradient().check(script().layers(*_norms(1)).gradients(_norms(factor)).history) == []


def test_fires_in_time_on_growth_beyond_the_noise(script):
    noise = np.exp(0.3 * np.random.default_rng(0).standard_normal(100))
    one = script().series("gradient-norm", noise * np.logspace(0, 4, 100))
    (finding,) = ExplodingGradient().check(one.history)
    assert finding.severity == "warning"
    assert "median" in finding.message
    assert finding.evidence[0].noise_floor is not None


@pytest.mark.parametrize("trend", [np.ones(100), np.logspace(0, 1, 100), np.logspace(4, 0, 100)])
def test_does_not_fire_in_time(script, trend):
    noise = np.exp(0.5 * np.random.default_rng(0).standard_normal(100))
    assert ExplodingGradient().check(script().series("gradient-norm", noise * trend).history) == []


def test_a_single_spike_is_no_explosion(script):
    assert ExplodingGradient().check(script().series("gradient-norm", [1.0] * 70 + [1e6] + [1.0] * 29).history) == []


def test_too_little_is_inconclusive_with_both_needs(script):
    answer = ExplodingGradient().check(script().series("gradient-norm", [1.0] * 39).history)
    assert isinstance(answer, Inconclusive)
    assert "40 steps" in answer.reason
    assert isinstance(ExplodingGradient().check(script().gradients({"a": math.nan}).history), Inconclusive)
