"""Drift of known size, planted in a network under watch: it is recovered within its interval, and as what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.site import Site
from holdfast.measures.straightness import journeys

INPUTS, FEATURES, SAMPLES = 8, 16, 64
SITE = Site("1", "input")


class Planted:
    """A linear layer on N(0, I) inputs, and an optimiser step that moves it exactly as wanted.

    Its features are W x + b: a step (ΔW, Δb) moves their means by Δb and nothing else, so that the drift of the
    *population* is √ mean_j Δb_j² / |w_j|², with |w_j| the reference SD of feature j.
    """

    def __init__(self, record: Any, **options: Any) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.Linear(FEATURES, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        self.recording = record(self.model, self.optimizer, **options)

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def step(self, weight: torch.Tensor, bias: torch.Tensor) -> float:
        """Train on a batch of its own, move as wanted, and say how far that was."""
        layer = self.model[0]
        drift = float((bias / layer.weight.detach().norm(dim=1)).square().mean().sqrt())
        self.optimizer.zero_grad()
        self.model(self.draw(SAMPLES, INPUTS)).mean().backward()
        for parameter in self.model.parameters():
            parameter.grad.zero_()
        layer.weight.grad -= weight
        layer.bias.grad -= bias
        self.optimizer.step()
        return drift


def test_intervals_hold_the_planted_drift_of_the_population(shapes_unchecked: None, record: Any) -> None:
    """200 steps there and back, each on other samples: 90 to 99 % of the 95 % intervals hold the drift.

    The unit, too, is estimated from the samples, which the interval does not include.
    """
    planted = Planted(record)
    weight, bias = 0.1 * planted.draw(FEATURES, INPUTS), 0.1 * planted.draw(FEATURES)
    drifts = [planted.step(sign * weight, sign * bias) for sign in [1, -1] * 100]
    readings = planted.recording.close().readings("parameter-drift", SITE, lag=1)
    assert len(readings) == 200
    held = [low <= drift <= high for drift, (low, high) in zip(drifts, (r.interval for r in readings), strict=True)]
    assert 0.90 <= np.mean(held) <= 0.99
    assert np.mean([reading.value for reading in readings]) == pytest.approx(np.mean(drifts), rel=0.05)
    # some 0.1 SD, with samples that scatter by twice that: seen nearly always
    assert np.mean([reading.above_noise for reading in readings]) > 0.9


def test_noise_floors_where_nothing_is_planted(shapes_unchecked: None, record: Any) -> None:
    """The weights move and the means do not: 5 % of 200 readings above the floor, to three standard errors."""
    planted = Planted(record)
    weight = 0.1 * planted.draw(FEATURES, INPUTS)
    for sign in [1, -1] * 100:
        planted.step(sign * weight, torch.zeros(FEATURES))
    readings = planted.recording.close().readings("parameter-drift", SITE, lag=1)
    assert 0.004 <= np.mean([reading.above_noise for reading in readings]) <= 0.096


def test_a_planted_journey_and_a_planted_swing(record: Any) -> None:
    """The fixed probe reads lags of 1 and 10 steps; going one way is a journey, going to and fro gets nowhere."""
    found = {}
    for name, signs in (("journey", [1.0] * 24), ("swing", [1.0, -1.0] * 12)):
        torch.manual_seed(0)
        planted = Planted(record, probe=torch.randn(SAMPLES, INPUTS, generator=torch.Generator().manual_seed(9)))
        bias = 0.05 * planted.draw(FEATURES)
        drifts = [planted.step(torch.zeros(FEATURES, INPUTS), sign * bias) for sign in signs]
        run = planted.recording.close()
        at = SITE.at(phase="probe")
        assert {reading.lag for reading in run.readings("parameter-drift", at)} >= {1, 10}
        found[name] = [each for each in journeys(run, at) if each.displacement.lag == 10], sum(drifts[:10])
    ways, length = found["journey"]
    for way in ways:
        assert (way.legs, way.seen) == (10, 1.0)
        low, high = way.straightness.interval
        assert low <= 1.0 <= high
        assert abs(way.path.value / length - 1) < 0.15  # the unit, an SD of 64 samples, by itself is known to 9 %
    swings, _ = found["swing"]
    assert swings
    # what is left is the rounding of b + δ − δ in float32
    assert all(way.straightness is None or way.straightness.value < 1e-5 for way in swings)
