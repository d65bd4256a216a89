from __future__ import annotations

import numpy as np
import pytest

from holdfast.core.finding import Inconclusive
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.diagnosis.loss_spike import LossSpike
from holdfast.store.memory import MemoryRun


@pytest.fixture
def loss():
    """A loss around 2, with 10 % of noise."""
    return 2 * np.exp(0.1 * np.random.default_rng(0).standard_normal(400))


@pytest.fixture
def norm():
    return np.exp(0.1 * np.random.default_rng(1).standard_normal(400))


def test_a_bad_batch_is_a_remark(script, loss, norm):
    loss[300] *= 6
    norm[300] *= 6
    (finding,) = LossSpike().check(script().series("loss", loss).series("gradient-norm", norm).history)
    assert (finding.rule, finding.severity) == ("loss-spike", "info")
    assert finding.message.startswith("the loss spiked once in 400 steps, at step 301: ×")
    assert "its usual 1.9, for 1 step; it came from that batch (nothing before was unusual" in finding.message
    (reading,) = finding.evidence
    assert (reading.measure, reading.site, reading.step) == ("spikes", Site("", "output"), 301)
    assert finding.strength == pytest.approx(reading.value / reading.noise_floor)
    assert finding.treatments[0] == "clip"


def test_one_that_lasts_is_a_warning_and_laid_to_the_update_before(script, loss, norm):
    loss[300:330] *= 4
    norm[299] *= 50
    (finding,) = LossSpike().check(script().series("loss", loss).series("gradient-norm", norm).history)
    assert finding.severity == "warning"
    assert ", for 30 steps; it came from the update before" in finding.message
    assert "its gradient-norm was ×49 the usual" in finding.message


def test_one_that_does_not_come_back_is_critical(script, loss, norm):
    loss[300:] *= 4
    rate = np.full(400, 0.1)
    rate[299:] = 1.0
    one = script().series("loss", loss).series("gradient-norm", norm).series("learning-rate", rate)
    (finding,) = LossSpike().check(one.history)
    assert finding.severity == "critical"
    assert "it has not come back" in finding.message
    assert "its learning-rate was ×10 the usual" in finding.message
    assert finding.treatments == ("scale-rate", "warm-up", "clip")


def test_one_that_came_back_later_is_none_the_worse_for_a_long_run(script, loss):
    loss[100:200] *= 4
    (finding,) = LossSpike().check(script().series("loss", loss).history)
    assert finding.severity == "warning"


def test_a_site_that_drifted_first_is_named_first(script, loss, norm):
    loss[300:330] *= 4
    drift = 0.05 * np.exp(0.1 * np.random.default_rng(2).standard_normal(400))
    quiet = drift[::-1].copy()
    drift[280:330] *= 10
    one = script().series("loss", loss).series("gradient-norm", norm)
    (finding,) = LossSpike().check(one.drift("conv3", drift).drift("conv4", quiet).history)
    assert [site.module for site in finding.sites] == ["conv3", ""]
    assert "a site drifted first (the parameter-drift at 'conv3' stood out from 20 steps before, at ×1" in (
        finding.message
    )
    assert finding.treatments[0] == "insert-norm"


def test_the_worst_of_several_is_told(script, loss):
    loss[150] *= 20
    loss[250:270] *= 3
    loss[300] *= 10
    (finding,) = LossSpike().check(script().series("loss", loss).history)
    assert "the loss spiked 3 times in 400 steps, the worst at step 251" in finding.message
    assert [reading.step for reading in finding.evidence] == [251, 151, 301]
    assert finding.severity == "warning"


def test_a_rise_of_half_that_lasts_is_a_remark(script, loss):
    loss[300:340] *= 1.6
    (finding,) = LossSpike().check(script().series("loss", loss).history)
    assert finding.severity == "info"


@pytest.mark.parametrize("trend", [np.ones(400), np.logspace(0, -2, 400), np.logspace(0, 2, 400)])
def test_noise_and_trends_are_no_spikes(script, loss, trend):
    assert LossSpike().check(script().series("loss", loss * trend).history) == []


def test_each_stream_has_its_own(loss):
    run = MemoryRun()
    for step, value in enumerate(loss.tolist(), 1):
        for stream, factor in (("a", 1.0), ("b", 6.0 if step == 300 else 1.0)):
            run.write(StepRecord(step, stream, {"loss": value * factor}))
    (finding,) = LossSpike().check(run)
    assert finding.sites == (Site("", "output", stream="b"),)


def test_too_little(script, loss):
    answer = LossSpike().check(script().series("loss", loss[:79]).history)
    assert isinstance(answer, Inconclusive)
    assert answer.reason == "79 steps with a loss above zero were recorded; it needs 80"
    assert LossSpike().check(script().series("loss", loss[:80]).history) == []
    assert isinstance(LossSpike().check(script().series("loss", -loss).history), Inconclusive)


def test_the_first_step_with_a_judge(script, loss):
    loss[79] *= 20
    (finding,) = LossSpike().check(script().series("loss", loss[:80]).history)
    assert "at step 80" in finding.message
