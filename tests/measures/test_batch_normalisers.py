"""`batch-noise`, `train-eval-gap` and `running-lag`: closed forms, bias and floors, over drawn batches."""

import math

import numpy as np
import pytest
import torch

from holdfast.core.site import Site
from holdfast.measures.batch_noise import batch_noise
from holdfast.measures.running_lag import running_lag
from holdfast.measures.train_eval_gap import train_eval_gap
from holdfast.stats.batch_statistics import BatchStatistics, Running

WHERE = {"site": Site("norm", "input"), "step": 3}
CHANNELS = 16


def running(mean=0.0, variance=1.0, noise=0.0, channels=CHANNELS):
    return Running(np.full(channels, mean), np.full(channels, variance), 0.0, noise)


def drawn(generator, samples, *, positions=1, correlation=0.0, averages=None, common=False):
    """A batch of unit variance; `correlation` between positions; `common` makes all channels one."""
    own = torch.randn(samples, CHANNELS, 1, generator=generator, dtype=torch.float64)
    x = correlation**0.5 * own
    x = x + (1 - correlation) ** 0.5 * torch.randn(
        samples, CHANNELS, positions, generator=generator, dtype=torch.float64
    )
    return BatchStatistics.of(x[:, :1].expand_as(x) if common else x, running=averages or running())


@pytest.mark.parametrize("samples", [2, 4, 16, 64])
@pytest.mark.parametrize(("positions", "correlation"), [(1, 0.0), (16, 0.0), (16, 0.5), (16, 1.0)])
def test_noise_is_the_root_of_the_effective_sample_size(samples, positions, correlation):
    generator = torch.Generator().manual_seed(0)
    readings = [
        batch_noise(drawn(generator, samples, positions=positions, correlation=correlation), **WHERE)
        for _ in range(200)
    ]
    effective = samples * positions / (1 + (positions - 1) * correlation)
    square = np.mean([reading.value**2 for reading in readings])
    assert square == pytest.approx(1 / effective, rel=0.12)
    assert all(reading.n == samples for reading in readings)


def test_noise_of_one_position_is_one_over_the_root_of_n_exactly():
    reading = batch_noise(drawn(torch.Generator().manual_seed(0), 4), **WHERE)
    assert reading.value == pytest.approx(0.5, rel=1e-12)
    assert reading.interval == pytest.approx((0.5, 0.5))


def test_noise_of_a_part_that_was_read_is_that_of_the_whole():
    x = torch.randn(64, 4, 3, generator=torch.Generator().manual_seed(0))
    half, whole = BatchStatistics.of(x[::2], samples=64), BatchStatistics.of(x)
    assert batch_noise(half, **WHERE).value == pytest.approx(batch_noise(whole, **WHERE).value, rel=0.3)
    assert batch_noise(half, **WHERE).n == 64


def test_no_noise_of_a_layer_that_does_not_use_the_batch_or_never_varies():
    x = torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(0))
    assert batch_noise(BatchStatistics.of(x, own=False), **WHERE) is None
    assert batch_noise(BatchStatistics.of(torch.ones(8, 4, 3)), **WHERE) is None


@pytest.mark.parametrize(("mean", "variance"), [(0.5, 1.0), (0.0, 4.0), (2.0, 0.25)])
def test_gap_and_lag_are_what_they_should_be(mean, variance):
    generator = torch.Generator().manual_seed(1)
    truth = math.hypot(mean / variance**0.5, 1 / variance**0.5 - 1)
    seen = [drawn(generator, 256, averages=running(mean, variance)) for _ in range(5)]
    gap, lag = train_eval_gap(seen[0], **WHERE), running_lag(seen, **WHERE)
    assert gap.value == pytest.approx(truth, rel=0.05)
    assert lag.value == pytest.approx(truth, rel=0.05)
    assert gap.above_noise
    assert lag.above_noise
    assert (gap.n, lag.n) == (256, 1280)


def test_gap_keeps_the_noise_of_running_averages_and_lag_does_not():
    """Running averages that are each time those of another small batch: wrong at every step, not in one direction."""
    generator = torch.Generator().manual_seed(2)
    gaps, lags = [], []
    for _ in range(100):
        seen = [
            drawn(generator, 64, averages=Running(np.random.default_rng(k).normal(0, 0.5, 16), np.ones(16), 0.0, 0.0))
            for k in range(10)
        ]
        gaps.append(train_eval_gap(seen[0], **WHERE).value)
        lags.append(running_lag(seen, **WHERE))
    assert np.mean(gaps) == pytest.approx(0.5, rel=0.25)
    assert np.mean([each.above_noise for each in lags]) < 0.1


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize(
    "samples", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow), 64]
)
def test_null_readings_stay_below_their_floor(samples, common):
    """The floor is for channels that all move together, and the level holds for them and for independent ones."""
    generator = torch.Generator().manual_seed(3)
    gaps = [train_eval_gap(drawn(generator, samples, common=common), **WHERE) for _ in range(400)]
    lags = [running_lag([drawn(generator, samples, common=common) for _ in range(5)], **WHERE) for _ in range(400)]
    assert np.mean([each.above_noise for each in gaps]) <= 0.075
    assert np.mean([each.above_noise for each in lags]) <= 0.075


def test_none_without_running_averages_or_two_steps():
    seen = BatchStatistics.of(torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(0)))
    assert train_eval_gap(seen, **WHERE) is None
    assert running_lag([seen] * 5, **WHERE) is None
    kept = drawn(torch.Generator().manual_seed(0), 8)
    assert running_lag([kept], **WHERE) is None


def test_no_gap_where_both_modes_use_the_running_averages():
    x = torch.randn(8, 16, 3, generator=torch.Generator().manual_seed(0))
    frozen = BatchStatistics.of(x, running=running(3.0), own=False)
    assert train_eval_gap(frozen, **WHERE) is None
    assert running_lag([frozen] * 5, **WHERE).above_noise
