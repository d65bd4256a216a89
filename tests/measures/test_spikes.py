from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.core.errors import InputError
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.measures.spikes import LEAST_RISE, SpikeDetector, of_history, over, spikes
from holdfast.store.memory import MemoryRun


@pytest.fixture
def loss():
    return np.exp(0.1 * np.random.default_rng(0).standard_normal(500))


def test_one_step(loss):
    loss[300] *= 6
    (spike,) = spikes(loss)
    assert (spike.step, spike.last, spike.lasted, spike.sustained) == (301, 301, 1, False)
    assert spike.rise == pytest.approx(math.log(loss[300] / spike.level))
    assert spike.level == pytest.approx(np.median(loss[285:300]))
    assert LEAST_RISE < spike.line < spike.rise
    assert spike.n == 256


def test_sustained_and_smaller_than_one_step_would_need(loss):
    loss[300:340] *= 1.6
    assert spikes(np.append(loss[:301], loss[340:])) == []
    (spike,) = spikes(loss)
    assert spike.sustained
    assert 301 <= spike.step <= 306
    assert 330 <= spike.last <= 345


def test_a_large_one_keeps_its_whole_length(loss):
    loss[300:330] *= 8
    (spike,) = spikes(loss)
    assert (spike.step, spike.last) == (301, 330)


def test_a_new_level_is_one_spike_and_then_the_usual(loss):
    loss[200:] *= 8
    loss[400] *= 6
    first, second = spikes(loss)
    assert (first.step, first.lasted) == (201, 64)
    assert (second.step, second.lasted) == (401, 1)
    assert second.level == pytest.approx(8, rel=0.1)


def test_two_apart_are_two_and_the_first_does_not_hide_the_second(loss):
    loss[[300, 310]] *= 6
    assert [each.step for each in spikes(loss)] == [301, 311]


def test_a_dip_and_a_trend_are_none(loss):
    loss[300] /= 20
    assert spikes(loss) == []
    assert spikes(loss * np.exp(-np.arange(500) / 100)) == []
    assert spikes(loss * np.exp(np.arange(500) / 100)) == []


def test_a_quiet_series_needs_a_tenth():
    quiet = np.linspace(1.0, 0.9, 400)
    quiet[300] *= 1.08
    assert spikes(quiet) == []
    quiet[300] *= 1.05
    (spike,) = spikes(quiet)
    assert spike.line == LEAST_RISE


def test_what_has_no_logarithm_is_left_out(loss):
    odd = loss.copy()
    odd[[50, 120, 250, 260, 270]] = [math.nan, math.inf, 0.0, -1.0, -math.inf]
    odd[300] *= 6
    assert [each.step for each in spikes(odd)] == [301]
    assert spikes([-1.0] * 200) == []
    assert spikes([]) == []


def test_the_first_steps_have_no_judge(loss):
    early = loss.copy()
    early[70] *= 20
    assert spikes(early) == []


def test_scale_does_not_matter(loss):
    loss[300] *= 6
    tiny, huge = spikes(loss * 1e-200), spikes(loss * 1e200)
    assert [each.step for each in tiny] == [each.step for each in huge] == [301]
    assert tiny[0].rise == pytest.approx(huge[0].rise)


def test_step_by_step_is_the_same_and_tells_at_once(loss):
    loss[300:304] *= 6
    detector, told = SpikeDetector(), []
    for step, value in enumerate(loss.tolist(), 1):
        spike = detector.update(step, value)
        if spike is not None:
            told.append((step, spike.step))
    assert told == [(301, 301)]
    assert detector.latest == spikes(loss)[0]
    assert detector.latest.last == 304


def test_steps_are_the_given_ones(loss):
    loss[300] *= 6
    assert spikes(loss, range(10, 5010, 10))[0].step == 3010
    with pytest.raises(InputError, match="a step for each value"):
        spikes(loss, [1, 2])


def test_of_a_stored_run(loss):
    run = MemoryRun()
    loss[300] *= 6
    for stream in ("net", "other"):
        for step, value in enumerate(loss.tolist(), 1):
            run.write(StepRecord(step, stream, {"loss": value, "gradient-norm": 1.0 if stream == "net" else value**2}))
    found = over(run)
    assert [(each.site, each.step) for each in found] == [
        (Site("", "output"), 301),
        (Site("", "output", stream="other"), 301),
        (Site("", "weight_grad", stream="other"), 301),
    ]
    first = of_history(run)[0]
    reading = found[0]
    assert (reading.measure, reading.unit, reading.n) == ("spikes", "nats", first.n)
    assert (reading.value, reading.noise_floor) == (first.rise, first.line)
    assert reading.above_noise
