import math

import pytest

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.vanishing_gradient import VanishingGradient


def _norms(factor, layers=8, last=1.0):
    """Gradient norm by layer; below 1 the gradient shrinks on its way back."""
    return {f"l{k}": last * factor ** (layers - 1 - k) for k in range(layers)}


@pytest.mark.parametrize(("factor", "severity"), [(0.4, "warning"), (0.2, "critical")])
def test_fires_by_the_total_ratio(script, factor, severity):
    (finding,) = VanishingGradient().check(script().layers(*_norms(1)).gradients(_norms(factor)).history)
    assert finding.severity == severity
    assert finding.sites[0].module == "l0"
    assert f"×{factor} per layer" in finding.message
    assert "from 1 at 'l7'" in finding.message
    assert finding.evidence[0].value == pytest.approx(-math.log(factor))


def test_fires_without_structure_from_the_order_of_the_inputs(script):
    one = script()
    for name in _norms(1):
        one.signal(name, [0.0], [1.0])
    assert len(VanishingGradient().check(one.gradients(_norms(0.3)).history)) == 1


@pytest.mark.parametrize("factor", [0.7, 1.0, 3.0])
def test_a_mild_trend_and_growth_are_no_vanishing(script, factor):
    assert VanishingGradient().check(script().layers(*_norms(1)).gradients(_norms(factor)).history) == []


def test_all_layers_small_together_is_convergence(script):
    assert VanishingGradient().check(script().layers(*_norms(1)).gradients(_norms(0.9, last=1e-9)).history) == []


def test_norms_falling_in_time_under_a_normaliser_are_no_vanishing(script):
    """‖W‖ grows, so ‖G‖ falls: every layer by 1,000 over the run, none beside the others."""
    one = script().layers(*_norms(1))
    for name in _norms(1):
        scale = [10.0 ** (-3 * step / 20) for step in range(21)]
        one.add("gradient-norm", name, scale, port="grad_output")
        one.add("gradient-norm", name, scale, port="weight_grad", leaf="weight")
        one.add("weight-norm", name, [1 / each for each in scale], port="weight", leaf="weight")
    assert VanishingGradient().check(one.history) == []


def test_large_weights_before_a_normaliser_are_no_vanishing(script):
    """Layers scaled by 10⁻ᵏ: gradients at output and weight fall with depth, ‖G‖·‖W‖ does not."""
    one = script().layers(*_norms(1))
    for k, name in enumerate(_norms(1)):
        small = 10.0 ** (k - 7)
        one.add("gradient-norm", name, [small] * 6, port="grad_output")
        one.add("gradient-norm", name, [small] * 6, port="weight_grad", leaf="weight")
        one.add("weight-norm", name, [1 / small] * 6, port="weight", leaf="weight")
    assert VanishingGradient().check(one.history) == []


def test_one_small_layer_is_no_trend(script):
    norms = {f"l{k}": 1.0 for k in range(8)} | {"l0": 1e-9}
    assert VanishingGradient().check(script().layers(*norms).gradients(norms).history) == []


def test_an_optimiser_that_rescales_makes_it_a_remark(script):
    one = script().layers(*_norms(1)).gradients(_norms(0.2))
    for name in _norms(1):
        one.add("update-ratio", name, [1e-3] * 6, port="update", leaf="weight")
        one.add("update-ratio", name, [0.9] * 6, port="update", leaf="bias")
    (finding,) = VanishingGradient().check(one.history)
    assert finding.severity == "info"
    assert "the optimiser makes up for it" in finding.message


def test_one_step_is_enough_where_the_layers_agree(script):
    assert len(VanishingGradient().check(script().layers(*_norms(1)).gradients(_norms(0.2), steps=1).history)) == 1


@pytest.mark.parametrize("layers", [1, 2])
def test_too_few_layers_are_inconclusive(script, layers):
    norms = _norms(1e-6, layers)
    answer = VanishingGradient().check(script().layers(*norms).gradients(norms).history)
    assert isinstance(answer, Inconclusive)
    assert f"norms of {layers} layer" in answer.reason
    assert "needs 3" in answer.reason


def test_nan_and_nothing_are_inconclusive(script):
    one = script().layers("a", "b", "c").gradients(dict.fromkeys("abc", math.nan))
    for answer in (VanishingGradient().check(one.history), VanishingGradient().check(script().history)):
        assert isinstance(answer, Inconclusive)
        assert "no gradient norm was read" in answer.reason
