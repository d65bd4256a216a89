from __future__ import annotations

import numpy as np
import pytest
import torch

from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.measures import OFFLINE
from holdfast.measures.parameter_drift import parameter_drift
from holdfast.measures.straightness import journeys
from holdfast.stats.features import Features
from holdfast.store.memory import MemoryRun

SITE = Site("fc", "input", phase="probe")
STEPS, CHANNELS = 100, 24


def features(position, seed=0):
    """Sixty samples of unit spread around a moving mean, each with a response of its own."""
    generator = np.random.default_rng(seed)
    response = 1 + 0.2 * generator.normal(size=(60, 1))
    values = generator.normal(size=(60, CHANNELS)) + response * position
    ones = torch.ones(CHANNELS).double()
    return Features(torch.from_numpy(values).float(), ones, 0 * ones, 1.0)


def run_of(moves, every):
    """What the fixed probe reads of a site whose mean makes these moves: lag 1 at a cadence, and lag 100."""
    positions = np.concatenate([np.zeros((1, CHANNELS)), np.cumsum(moves, axis=0)])
    run = MemoryRun()
    for step in range(1, STEPS + 1):
        readings = []
        if step % every == 0:
            before, now = features(positions[step - 1]), features(positions[step])
            readings.append(parameter_drift(before, now, site=SITE, step=step, lag=1))
        if step == STEPS:
            before, now = features(positions[0]), features(positions[step])
            readings.append(parameter_drift(before, now, site=SITE, step=step, lag=STEPS))
        run.write(StepRecord(step, readings=tuple(readings)))
    return run


def unit(rows):
    return rows / np.sqrt(np.square(rows).mean(1, keepdims=True))


DIRECTIONS = unit(np.random.default_rng(1).normal(size=(STEPS, CHANNELS)))
JOURNEY = 0.05 * DIRECTIONS[:1].repeat(STEPS, 0)
WALK = 0.05 * DIRECTIONS
SWING = JOURNEY * np.where(np.arange(STEPS) % 2, -1, 1)[:, None]


@pytest.mark.parametrize("every", [1, 5])
def test_a_straight_line_is_a_journey(every):
    (journey,) = journeys(run_of(JOURNEY, every))
    assert (journey.legs, journey.seen) == (STEPS // every, 1 / every)
    assert journey.path.value == pytest.approx(5.0, rel=0.05)
    assert journey.displacement.value == pytest.approx(5.0, rel=0.05)
    assert journey.straightness.value == pytest.approx(1.0, rel=1e-3)
    low, high = journey.straightness.interval
    assert low < 1 < high


@pytest.mark.parametrize("every", [1, 5])
def test_a_random_walk_is_one_over_the_root_of_its_steps(every):
    """0.1 for 100 steps; in 24 dimensions a walk's length scatters by about 1/√(2·24) = 14 %: to three of these."""
    (journey,) = journeys(run_of(WALK, every))
    assert journey.path.value == pytest.approx(5.0, rel=0.05)
    assert journey.straightness.value == pytest.approx(0.1, rel=0.45)


def test_swinging_to_and_fro_gets_nowhere():
    (journey,) = journeys(run_of(SWING, 3))
    assert journey.path.value == pytest.approx(5.0, rel=0.1)
    assert not journey.displacement.above_noise
    assert journey.straightness is None


def test_offline():
    run = run_of(WALK, 2)
    (journey,) = journeys(run)
    assert OFFLINE["path-length"](run) == [journey.path]
    assert OFFLINE["straightness"](run) == [journey.straightness]
    assert journeys(run, SITE) == [journey]
    assert journeys(run, SITE.at(module="other")) == []


def test_legs_that_overlap_count_once():
    run = MemoryRun()
    for step in range(1, 11):
        lag = min(step, 3)  # from step to step, each leg goes over the last three
        readings = [parameter_drift(features(0), features(0.1), site=SITE, step=step, lag=lag)]
        if step == 10:
            readings.append(parameter_drift(features(0), features(0.5), site=SITE, step=step, lag=10))
        run.write(StepRecord(step, readings=tuple(readings)))
    (journey,) = journeys(run)
    # steps 0–1, 1–4, 4–7, 7–10
    assert (journey.legs, journey.seen) == (4, 1.0)


def test_one_batch_after_another_is_no_path():
    run = MemoryRun()
    for step in range(1, 12):
        at = SITE.at(phase="train")
        readings = [parameter_drift(features(0), features(0.1), site=at, step=step, lag=1)]
        if step == 11:
            readings.append(parameter_drift(features(0), features(0.1), site=at, step=step, lag=10))
        run.write(StepRecord(step, readings=tuple(readings)))
    assert journeys(run) == []
