"""What the monitor says of a layer behind sigmoid or ReLU with normal pre-activations, against quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from holdfast.core.site import Site
from holdfast.stats.summary import Summary

SITE = Site("2", "input")
BATCH, STEPS, FEATURES, INPUTS = 4096, 4, 24, 6


def moments(activation: Callable[[float], float], mean: float, sd: float) -> tuple[float, float, float, float]:
    """Mean, SD, skewness and kurtosis of activation(N(mean, sd²))."""

    def expect(function: Callable[[float], float]) -> float:
        value, _ = integrate.quad(
            lambda z: function(activation(mean + sd * z)) * stats.norm.pdf(z), -10, 10, points=[-mean / sd], limit=300
        )
        return value

    centre = expect(lambda a: a)
    second, third, fourth = (expect(lambda a, k=k: (a - centre) ** k) for k in (2, 3, 4))
    return centre, math.sqrt(second), third / second**1.5, fourth / second**2


def watched(activation: nn.Module, mean: float, sd: float, record: Any) -> Any:
    """A run of a network whose pre-activations are N(mean, sd²), feature by feature; its parameters stay."""
    generator = torch.Generator().manual_seed(0)
    first = nn.Linear(INPUTS, FEATURES)
    with torch.no_grad():
        rows = torch.randn(FEATURES, INPUTS, generator=generator)
        first.weight.copy_(sd * rows / rows.norm(dim=1, keepdim=True))
        first.bias.fill_(mean)
    model = nn.Sequential(first, activation, nn.Linear(FEATURES, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recording = record(model, optimizer, mode="exact")
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(BATCH, INPUTS, generator=generator)).mean().backward()
        optimizer.step()
    return recording.close()


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (1.0, 2.0), (-1.0, 1.0)])
@pytest.mark.parametrize(
    ("layer", "function"),
    [(nn.Sigmoid(), lambda x: 1 / (1 + math.exp(-x))), (nn.ReLU(), lambda x: max(x, 0.0))],
    ids=["sigmoid", "relu"],
)
def test_moments_behind_an_activation(layer: nn.Module, function: Any, mean: float, sd: float, record: Any) -> None:
    """16,384 samples, of which the features share six inputs: mean and SD to four standard errors of so many values,
    those of single features to five, skewness and kurtosis to 10 %."""
    run = watched(layer, mean, sd, record)
    seen = [each for _, each in run.summaries(SITE)]
    assert len(seen) == STEPS
    total = sum(seen[1:], start=seen[0])
    assert isinstance(total, Summary)
    centre, spread, skewness, kurtosis = moments(function, mean, sd)
    n = BATCH * STEPS
    found = total.moments
    assert found.count == n * FEATURES
    assert found.mean == pytest.approx(centre, abs=4 * spread / math.sqrt(n))
    # Var s² / σ⁴ = (κ − 1) / n
    assert found.sd == pytest.approx(spread, rel=4 * math.sqrt((kurtosis - 1) / n) / 2)
    assert found.skewness == pytest.approx(skewness, abs=0.1 * max(1.0, abs(skewness)))
    assert found.kurtosis == pytest.approx(kurtosis, rel=0.1)
    channels = [each for _, each in run.channels(SITE)]
    merged = sum(channels[1:], start=channels[0])
    assert np.abs(merged.mean - centre).max() < 5 * spread / math.sqrt(n)


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (1.0, 2.0)])
def test_quantiles_follow_the_sigmoid(mean: float, sd: float, record: Any) -> None:
    """A rising function carries quantiles with it; sketches know them to a bin (here at most 0.06)."""
    run = watched(nn.Sigmoid(), mean, sd, record)
    seen = [each for _, each in run.summaries(SITE)]
    sketch = sum(seen[1:], start=seen[0]).sketch
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        expected = 1 / (1 + math.exp(-(mean + sd * stats.norm.ppf(q))))
        assert sketch.quantile(q) == pytest.approx(expected, abs=0.03)


def test_zeros_behind_a_relu_are_the_normals_lower_tail(record: Any) -> None:
    """P(z ≤ 0) = Φ(−m/s), to four standard errors of 16,384 values."""
    run = watched(nn.ReLU(), 0.5, 1.0, record)
    share = stats.norm.cdf(-0.5)
    seen = [each.counts for _, each in run.summaries(SITE)]
    total = sum(seen[1:], start=seen[0])
    assert total.zero_fraction == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / (BATCH * STEPS)))
