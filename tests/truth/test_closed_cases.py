"""Cases whose answer is known on paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from holdfast.core.site import Site
from holdfast.measures.drift_amplification import amplification
from holdfast.measures.gaussian_w2 import gaussian_w2
from holdfast.measures.log_scale_ratio import log_scale_ratio
from holdfast.measures.observed_drift import observed_drift
from holdfast.measures.parameter_drift import parameter_drift
from holdfast.measures.sampling_drift import sampling_drift
from holdfast.measures.scale_shift import scale_shift
from holdfast.measures.standardised_mean_shift import standardised_mean_shift
from holdfast.stats.features import Features
from holdfast.stats.moments import Moments
from holdfast.stats.observation import observe

SITE = Site("fc", "input")


def test_standard_normal_to_normal_2_9_from_moments() -> None:
    before, after = Moments(100, 0.0, 100.0, 0.0, 300.0), Moments(100, 2.0, 900.0, 0.0, 24_300.0)
    assert standardised_mean_shift(before, after) == 2.0
    assert log_scale_ratio(before, after) == pytest.approx(math.log(3), rel=1e-15)
    assert gaussian_w2(before, after) == pytest.approx(2 * math.sqrt(2), rel=1e-15)


def test_standard_normal_to_normal_2_9_from_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(20_000, 1, 1, generator=generator)
    after = 2 + 3 * torch.randn(20_000, 1, 1, generator=generator)
    x, y = observe(before), observe(after)
    moments = x.summary.moments, y.summary.moments
    # standard errors: about 3 / √20,000 = 0.021 of the mean, 1 / √40,000 = 0.005 of a logarithm of an SD
    assert standardised_mean_shift(*moments) == pytest.approx(2.0, abs=0.07)
    assert log_scale_ratio(*moments) == pytest.approx(math.log(3), abs=0.025)
    assert gaussian_w2(*moments) == pytest.approx(2 * math.sqrt(2), abs=0.1)
    assert observed_drift(x.features, y.features, site=SITE, step=1, lag=1).value == pytest.approx(2.0, abs=0.07)


def test_the_same_shift_of_the_same_samples() -> None:
    """x → 2 + 3x: parameter drift 2, scale shift ln 3, both exact in reference SD."""
    x = torch.randn(128, 16, 1, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean(0)) / x.std(0, correction=0)
    before, after = observe(x).features, observe(2 + 3 * x).features
    # each d_i = 2 + 2 x_i: d̄ = 2, s²_d / n = 4 · (128/127) / 128
    expected = math.sqrt(4 - 4 / 127)
    assert parameter_drift(before, after, site=SITE, step=1, lag=1).value == pytest.approx(expected, rel=1e-5)
    assert scale_shift(before, after, site=SITE, step=1, lag=1).value == pytest.approx(math.log(3), rel=1e-5)


def test_sampling_drift_of_independent_batches() -> None:
    """Under N(0, 1) features E Δμ² = 2/B."""
    generator = torch.Generator().manual_seed(0)
    a, b = (observe(torch.randn(50, 400, 1, generator=generator)).features for _ in range(2))
    assert sampling_drift(a, b, site=SITE, step=1).value == pytest.approx(math.sqrt(2 / 50), rel=0.03)
    assert observed_drift(a, b, site=SITE, step=1, lag=1).value == pytest.approx(math.sqrt(2 / 50), rel=0.1)


def inputs_of_layers(model: nn.Sequential, x: torch.Tensor) -> list[Features]:
    found = []
    with torch.no_grad():
        for layer in model:
            found.append(observe(x.unsqueeze(2)).features)
            x = layer(x)
    return [*found, observe(x.unsqueeze(2)).features]


def test_a_planted_update_of_one_layer_is_seen_downstream_and_not_upstream() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(6)))
    x = torch.randn(64, 32)
    before = inputs_of_layers(model, x)
    with torch.no_grad():
        model[2][0].bias += 0.2
    after = inputs_of_layers(model, x)
    drifts = [parameter_drift(a, b, site=SITE, step=1, lag=1) for a, b in zip(before, after, strict=True)]
    assert [each.value for each in drifts[:3]] == [0.0, 0.0, 0.0]
    assert not any(each.above_noise for each in drifts[:3])
    assert all(each.above_noise and each.interval[0] > 0 for each in drifts[3:])


def test_amplification_of_drifts_that_grow_by_a_half() -> None:
    """A shift that triples from layer to layer while the spread doubles: in SDs it grows by 3/2, ln 1.5 a layer."""
    x = torch.randn(256, 8, 1, generator=torch.Generator().manual_seed(0))
    drifts = []
    for depth in range(6):
        before = observe(2.0**depth * x).features
        after = observe(2.0**depth * x + 0.01 * 3.0**depth).features
        drifts.append(parameter_drift(before, after, site=SITE, step=1, lag=1))
    reading = amplification(drifts, site=Site("", "output"), step=1)
    assert reading.value == pytest.approx(math.log(1.5), rel=1e-3)
