from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.measures import OFFLINE, QUANTITIES
from holdfast.measures.stored_distances import DISTANCES, OVER, POINTS
from holdfast.measures.wasserstein1 import wasserstein1
from holdfast.stats.observation import observe
from holdfast.stats.summary import Summary
from holdfast.store.memory import MemoryRun

SITE = Site("fc", "input")


def summary_of(step, shift=0.0, scale=1.0, n=64, exponent=-2):
    values = torch.randn(n, 4, 1, generator=torch.Generator().manual_seed(step))
    return observe(shift + scale * values, exponent=exponent).summary


def grown(step):
    return math.exp(step / 200)


def run_of(summaries, site=SITE):
    run = MemoryRun()
    for step, summary in summaries.items():
        run.write(StepRecord(step, summaries={site: summary}))
    return run


def lags(readings):
    return {reading.lag_decade for reading in readings}


def test_all_seven_are_offered_offline():
    assert set(OVER) <= set(OFFLINE)
    assert len(DISTANCES) == len(OVER) == 7
    assert all(quantity is QUANTITIES[quantity.name] for quantity, _ in DISTANCES)


def test_holds_a_state_until_one_is_late_enough():
    steps = [*range(1, 60, 3), *range(60, 400, 20)]
    run = run_of({step: summary_of(step) for step in steps})
    readings = OVER["wasserstein1"](run)
    assert lags(readings) == {1, 10, 100}
    stored = dict(run.summaries(SITE))
    for decade in (1, 10, 100):
        mine = [each for each in readings if each.lag_decade == decade]
        for earlier, later in itertools.pairwise(mine):
            assert later.step - later.lag >= earlier.step
        for reading in mine:
            since = reading.step - reading.lag
            assert reading.step == min(step for step in steps if step >= since + decade)
            a, b = stored[since], stored[reading.step]
            assert reading.value == wasserstein1(a.sketch, b.sketch) / a.moments.sd
    # 20 steps apart there is no lag of the decade 1
    assert max(each.step for each in readings if each.lag_decade == 1) == 60
    assert [each.step for each in readings if each.lag_decade == 100] == [120, 220, 320]
    assert {(each.site, each.n, each.measure, str(each.unit)) for each in readings} == {
        (SITE, 256, "wasserstein1", "reference SD")
    }


def test_n_is_samples_where_the_run_knows_them():
    run = run_of({step: summary_of(step) for step in range(1, 30)})
    run.write(StepRecord(30, readings=(Reading("signal-spread", SITE, 30, 1.0, "ratio", 64),)))
    assert {each.n for each in OVER["gaussian-kl"](run)} == {64}


@pytest.mark.parametrize("name", OVER)
def test_noise_stays_within_the_floor_and_a_displacement_does_not(name):
    """Batches of one distribution: 5 % of readings. A slow move, 1.2 SD and a factor of 1.6 in 100 steps: all there."""
    still = OVER[name](run_of({step: summary_of(step) for step in range(1, 200)}))
    assert np.mean([each.above_noise for each in still]) < 0.15
    moving = OVER[name](
        run_of({step: summary_of(step, shift=step / 133 * grown(step), scale=grown(step)) for step in range(1, 400)})
    )
    assert np.mean([each.above_noise for each in moving if each.lag_decade == 100]) > 0.95
    assert np.mean([each.above_noise for each in moving if each.lag_decade == 1]) < 0.25


def test_too_few_steps_give_nothing():
    assert OVER["jensen-shannon"](run_of({step: summary_of(step) for step in range(1, 20)})) == []
    assert OVER["jensen-shannon"](run_of({step: summary_of(step) for step in range(1, 21)})) != []


def test_long_runs_are_thinned_evenly():
    readings = OVER["gaussian-w2"](run_of({step: summary_of(step) for step in range(1, 400)}))
    ends = [each.step for each in readings if each.lag_decade == 1]
    assert len(ends) == POINTS
    assert (ends[0], ends[-1]) == (2, 399)
    assert max(np.diff(ends)) <= 2 * min(np.diff(ends))


def test_what_cannot_be_compared_is_left_out():
    """Another scale, merged steps, constant values, nothing at all, overflown sums."""
    odd = {
        31: summary_of(31, exponent=3),
        32: summary_of(31) + summary_of(32) + summary_of(33),
        33: observe(torch.ones(64, 4, 1), exponent=-2).summary,
        34: Summary.empty(),
        35: observe(torch.tensor([1e38, -3e38]).repeat(64, 2).unsqueeze(2) * 1.0, exponent=-2).summary,
    }
    run = run_of({step: summary_of(step) for step in range(1, 31)} | odd)
    for over in OVER.values():
        readings = over(run)
        assert all(math.isfinite(each.value) for each in readings)
        assert not {31, 32, 33, 34} & {each.step for each in readings}


def test_gradients_and_weights_are_not_activations():
    site = Site("fc", "grad_output")
    run = run_of({step: summary_of(step) for step in range(1, 40)}, site)
    assert OVER["gaussian-w2"](run) == []
