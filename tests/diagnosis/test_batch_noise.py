import numpy as np
import pytest

from holdfast.core.finding import Inconclusive
from holdfast.core.structure import ModuleNode, Structure
from holdfast.diagnosis.batch_noise import BatchNoise


def structure(*kinds):
    nodes = [ModuleNode(str(k), kind, (kind, "_BatchNorm"), True) for k, kind in enumerate(kinds)]
    return Structure("net", "Net", tuple(nodes))


@pytest.mark.parametrize(("noise", "severity"), [(0.25, "info"), (0.5, "warning"), (0.7, "critical")])
def test_fires_by_noise(script, noise, severity):
    one = script().add("batch-noise", "calm", [0.05] * 6).add("batch-noise", "noisy", [noise] * 6, n=4)
    (finding,) = BatchNoise().check(one.history)
    assert (finding.severity, [site.module for site in finding.sites]) == (severity, ["noisy"])
    assert finding.strength == pytest.approx(noise / 0.2)
    assert "4 samples are worth" in finding.message
    assert "1 of 2 batch normalisers" in finding.message


def test_effective_values_are_the_inverse_square(script):
    (finding,) = BatchNoise().check(script().add("batch-noise", "a", [0.5] * 6, n=4).history)
    assert "4 samples are worth 4 independent values a channel" in finding.message


def test_noise_that_is_above_by_chance_is_no_finding(script):
    generator = np.random.default_rng(0)
    one = script()
    for site in range(20):
        one.add("batch-noise", f"l{site}", 0.19 * np.exp(0.2 * generator.standard_normal(30)))
    assert BatchNoise().check(one.history) == []


def test_too_few_steps_are_inconclusive(script):
    answer = BatchNoise().check(script().add("batch-noise", "a", [0.7] * 4).history)
    assert isinstance(answer, Inconclusive)
    assert answer.reason == "the noise of a batch was read 4 times at a layer; it needs 5"


def test_batches_of_one_sample_are_inconclusive_and_say_so(script):
    one = script().series("loss", [1.0] * 50)
    one.run.describe(structure("BatchNorm2d"))
    answer = BatchNoise().check(one.history)
    assert isinstance(answer, Inconclusive)
    assert "a batch of a single sample tells nothing of its noise" in answer.reason


def test_a_model_without_batch_normalisers_or_with_frozen_ones_is_well(script):
    assert BatchNoise().check(script().layers("a").series("loss", [1.0]).history) == []
    one = script().add("running-lag", "a", [0.0] * 9, floor=0.1)
    one.run.describe(structure("BatchNorm2d"))
    assert BatchNoise().check(one.history) == []
