"""Streams of known size, level and correlation through a known layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from holdfast.core.site import Site
from holdfast.live.moment import Moment
from holdfast.live.replay import record_call
from holdfast.measures.stream_rms import stream_rms
from holdfast.measures.stream_share import stream_share
from holdfast.measures.stream_shift import stream_shift
from holdfast.measures.streams import take, take_gradients

SITE = Site("head", "input", leaf="a")


class Joined(nn.Module):
    """A layer on a concatenation of two inputs."""

    def __init__(self, one, other):
        super().__init__()
        self.head = nn.Linear(one + other, 4)

    def forward(self, x, y):
        return self.head(torch.cat([x, y], 1))


def test_share_of_independent_streams_is_their_share_of_the_squares():
    """Var(W_s x_s) = σ_s² ‖W_s‖² for white streams; 20,000 samples, within 2 %."""
    model, x, y = Joined(3, 5), torch.randn(20_000, 3), 2 * torch.randn(20_000, 5) + 7
    found = {(each.measure, each.site.leaf): each for each in take(Moment(model, 1, call=record_call((x, y), {})))}
    weight = model.head.weight.detach()
    sizes = float(weight[:, :3].square().sum()), 4 * float(weight[:, 3:].square().sum())
    assert found["stream-share", "input#0"].value == pytest.approx(sizes[0] / sum(sizes), abs=0.02)
    assert found["stream-rms", "input#1"].value == pytest.approx(math.sqrt(4 + 49), rel=0.01)
    # SD is the root of the mean of 1 and 4
    assert found["stream-shift", "input#0"].value == pytest.approx(7 / math.sqrt(2.5), rel=0.02)


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.5])
def test_shares_of_correlated_streams(correlation):
    """a of SD 1 and b of SD 2: (1 + 2ρ) / (5 + 4ρ) is a's; within 0.02. Below 0 where b takes it away."""
    x, noise = torch.randn(2, 20_000, 1)
    y = 2 * (correlation * x + math.sqrt(1 - correlation**2) * noise)
    a, b = stream_share([x, y], sites=[SITE, SITE], step=1)
    assert a.value == pytest.approx((1 + 2 * correlation) / (5 + 4 * correlation), abs=0.02)
    assert a.value + b.value == pytest.approx(1, abs=1e-12)


def test_gradient_shares_of_a_mean_square_error():
    """Zero weights, targets x₁: G = −2/(nk) Σ t xᵀ, of which only the first stream has any, to sampling of 2 %."""
    model, x, y = Joined(1, 1), torch.randn(20_000, 1), torch.randn(20_000, 1)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    for inputs, share in (((x, y), 1.0), ((x, x.clone()), 0.5), ((x, 3 * x), 0.1)):
        batch = inputs, x.expand(-1, 4)
        found = take_gradients(Moment(model, 1, batch=batch, loss_fn=nn.functional.mse_loss))
        assert found[0].value == pytest.approx(share, abs=0.02 if share == 1.0 else 1e-5)


def test_intervals_and_floor_of_samples():
    """95 % intervals hold the truth, and the floor is kept under equal levels, in 90 to 99 % of 300 draws of 40."""
    hits = {"rms": 0, "shift": 0, "share": 0, "floor": 0}
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(2, 40, 6, generator=generator)
        rms = stream_rms(x, site=SITE, step=1)
        shift = stream_shift(x + 1, [y], site=SITE, step=1)
        share = stream_share([x, 2 * y], sites=[SITE, SITE], step=1)[0]
        still = stream_shift(x, [y], site=SITE, step=1)
        for name, reading, truth in (("rms", rms, 1.0), ("shift", shift, 1.0), ("share", share, 0.2)):
            hits[name] += reading.interval[0] <= truth <= reading.interval[1]
        hits["floor"] += not still.above_noise
    assert all(270 <= each <= 297 for each in hits.values()), hits
