import math

import pytest

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.drift_amplification import DriftAmplification


def _chain(script, factor, last, layers=8, steps=10, floor=1e-6):
    names = [f"l{k}" for k in range(layers)]
    one = script().layers(*names)
    for k, name in enumerate(names):
        one.drift(name, [last * factor ** (k - layers + 1)] * steps, floor=floor)
    return one


def test_fires_on_a_planted_growth_and_gives_it(script):
    (finding,) = DriftAmplification().check(_chain(script, 3.0, 2.0).history)
    assert finding.severity == "critical"
    assert finding.evidence[0].value == pytest.approx(math.log(3))
    assert finding.evidence[0].unit == "per layer"
    assert "×3 per layer (95 % interval 3 to 3, 8 layers" in finding.message
    assert finding.sites[0].module == "l7"


@pytest.mark.parametrize(
    ("factor", "last"),
    [(1.3, 0.2), (1.9, 2.0), (3.0, 0.04)],
    ids=["healthy growth", "below a doubling", "too small to matter"],
)
def test_does_not_fire(script, factor, last):
    assert DriftAmplification().check(_chain(script, factor, last).history) == []


def test_linear_accumulation_is_no_amplification(script):
    names = [f"l{k}" for k in range(1, 11)]
    one = script().layers(*names)
    for k, name in enumerate(names, 1):
        one.drift(name, [0.05 * k] * 10)
    assert DriftAmplification().check(one.history) == []


def test_all_within_noise_is_well(script):
    assert DriftAmplification().check(_chain(script, 3.0, 2.0, floor=10.0).history) == []


def test_layers_with_a_dead_signal_do_not_make_a_slope(script):
    one = _chain(script, 3.0, 2.0)
    for k in range(8):
        one.signal(f"l{k}", [1.0], [1.0 if k < 2 else 1e-6])
    answer = DriftAmplification().check(one.history)
    assert isinstance(answer, Inconclusive)


@pytest.mark.parametrize(("layers", "steps"), [(1, 10), (3, 10), (8, 4)])
def test_too_little_is_inconclusive(script, layers, steps):
    answer = DriftAmplification().check(_chain(script, 3.0, 2.0, layers=layers, steps=steps).history)
    assert isinstance(answer, Inconclusive)
    assert "needs 4 layers and 5 observed steps" in answer.reason


def test_without_structure_every_observed_input_counts(script):
    one = _chain(script, 3.0, 2.0)
    one.run._structures.clear()
    assert len(DriftAmplification().check(one.history)) == 1
