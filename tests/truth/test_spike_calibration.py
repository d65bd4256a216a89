"""The spike detector by simulation: at most one false alarm in 10,000 steps, and what it finds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.signal import lfilter

from holdfast.measures.spikes import spikes

Generator = np.random.Generator
Noise = Callable[[int, Generator], np.ndarray]


def white(n: int, generator: Generator) -> np.ndarray:
    """A level with noise of 15 %."""
    return np.maximum(1 + 0.15 * generator.standard_normal(n), 1e-3)


def log_normal(n: int, generator: Generator) -> np.ndarray:
    return np.exp(0.5 * generator.standard_normal(n))


def autoregressive(correlation: float) -> Noise:
    """exp of a stationary AR(1) with an SD of 0.15."""

    def draw(n: int, generator: Generator) -> np.ndarray:
        innovations = 0.15 * math.sqrt(1 - correlation**2) * generator.standard_normal(n)
        start = [correlation * 0.15 * generator.standard_normal()]
        return np.exp(lfilter([1.0], [1.0, -correlation], innovations, zi=start)[0])

    return draw


def falling(n: int, generator: Generator) -> np.ndarray:
    """A loss that falls twentyfold."""
    return (0.1 + 2 * np.exp(-np.arange(n) / 300)) * np.exp(0.1 * generator.standard_normal(n))


def noisier(n: int, generator: Generator) -> np.ndarray:
    """A loss that falls, the noise on its logarithm growing sevenfold: of few errors each batch has more or fewer."""
    time = np.minimum(np.arange(n) / 300, 1)
    return np.exp(-3 * time + (0.1 + 0.6 * time) * generator.standard_normal(n))


NOISE = {
    "white": white,
    "AR(1), 0.5": autoregressive(0.5),
    "AR(1), 0.9": autoregressive(0.9),
    "AR(1), 0.97": autoregressive(0.97),
    "log-normal": log_normal,
    "falling": falling,
    "noisier": noisier,
}
each_noise = pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)


def alarms(noise: Noise, length: int, runs: int, seed: int) -> int:
    generator = np.random.default_rng(seed)
    return sum(len(spikes(noise(length, generator))) for _ in range(runs))


def power(noise: Noise, factor: float, length: int, runs: int) -> float:
    """How often a rise by a factor, over so many steps, is told within these steps."""
    generator = np.random.default_rng(9)
    found = 0
    for _ in range(runs):
        values = noise(340, generator)
        values[300 : 300 + length] *= factor
        found += any(301 <= each.step <= 300 + length for each in spikes(values))
    return found / runs


@each_noise
def test_false_alarms_in_short(shapes_unchecked: None, noise: Noise) -> None:
    """20,000 steps in one run and 15,000 in runs of 300, where the detector knows least: at most 2 and 2."""
    assert alarms(noise, 20_000, 1, seed=1) <= 2
    assert alarms(noise, 300, 50, seed=2) <= 2


@pytest.mark.slow
@each_noise
def test_at_most_one_false_alarm_in_10_000_steps(shapes_unchecked: None, noise: Noise) -> None:
    long, short = alarms(noise, 100_000, 5, seed=3) / 50, alarms(noise, 300, 1000, seed=4) / 30
    print(f"false alarms in 10,000 steps: {long:.2f} in runs of 100,000, {short:.2f} in runs of 300")
    assert long <= 0.5
    assert short <= 1.0


@pytest.mark.parametrize(
    ("noise", "factor", "length"),
    [(white, 4.5, 1), (white, 2.7, 8), (log_normal, 100.0, 1), (log_normal, 30.0, 8)],
)
def test_what_the_card_says_is_found(shapes_unchecked: None, noise: Noise, factor: float, length: int) -> None:
    assert power(noise, factor, length, 120) >= 0.95


def test_tails_cost_what_the_card_says(shapes_unchecked: None) -> None:
    generator = np.random.default_rng(5)
    count = len(spikes(np.exp(0.15 * generator.standard_t(5, 40_000))))
    assert 4 <= count <= 40
