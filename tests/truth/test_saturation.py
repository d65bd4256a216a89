"""Saturation of normal pre-activations against the normal distribution's tails; four standard errors each."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F

from holdfast.core.reading import Table
from holdfast.live.moment import Moment
from holdfast.live.replay import record_call
from holdfast.measures.activation_window import ActivationWindow
from holdfast.measures.attention_rows import take
from holdfast.norms.dynamic_tanh import DynamicTanh


def threshold(slope):
    """Where a slope is a twentieth of its greatest, by bisection on the slope itself, in float64."""
    low, high = 0.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0.05 * slope(0.0) else (low, middle)
    return low


def sigmoid_slope(z):
    return math.exp(-z) / (1 + math.exp(-z)) ** 2


def tanh_slope(z):
    return 1 - math.tanh(z) ** 2


def measured(model, *inputs):
    found = ActivationWindow()(Moment(model, 1, call=record_call(inputs, {})))
    return {each.site.leaf or each.site.module: each for each in found if not isinstance(each, Table)}


def assert_share(value, expected, n):
    assert value == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))


class Shifted(nn.Module):
    """A functional activation that no layer feeds directly."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x + 0.0)


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        (nn.Sequential(nn.Sigmoid()), threshold(sigmoid_slope)),
        (Shifted(torch.sigmoid), threshold(sigmoid_slope)),
        (nn.Sequential(nn.Tanh()), threshold(tanh_slope)),
        (Shifted(torch.tanh), threshold(tanh_slope)),
        (nn.Sequential(DynamicTanh(50, alpha=0.5)), threshold(lambda x: tanh_slope(0.5 * x))),
    ],
)
@pytest.mark.parametrize("sd", [1.0, 3.0])
def test_normal_pre_activations(model, limit, sd):
    (reading,) = measured(model, sd * torch.randn(2000, 50)).values()
    assert_share(reading.value, 2 * stats.norm.sf(limit / sd), 100_000)
    assert reading.n == 2000


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_gates_driven_by_normal_inputs(layer):
    """Weights of norm 4, no recurrence: what every gate takes is N(0, 4²)."""
    rnn = layer(8, 5, bias=False)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(4 * F.normalize(rnn.weight_ih_l0))
        rnn.weight_hh_l0.zero_()
    readings = measured(rnn, torch.randn(400, 50, 8))
    gates = [each for each in readings.values() if each.measure == "gate-saturation"]
    assert len(gates) == (3 if layer is nn.LSTM else 2)
    for reading in gates:
        # five units of one gate see the same eight inputs: count them as one
        assert_share(reading.value, 2 * stats.norm.sf(threshold(sigmoid_slope) / 4), 20_000)
    assert_share(readings["l0.candidate"].value, 2 * stats.norm.sf(threshold(tanh_slope) / 4), 20_000)


def test_attention_between_two_keys():
    """Scores differ by d ~ N(0, 6²): saturated where |d| > ln 99, entropy by quadrature."""
    q = torch.randn(100, 2, 50, 1)
    k = torch.tensor([[6.0], [0.0]]).expand(100, 2, 2, 1)

    class Two(nn.Module):
        def forward(self, q, k):
            return F.scaled_dot_product_attention(q, k, k)

    saturation, entropy, *_ = take(Moment(Two(), 1, call=record_call((q, k), {})))
    assert_share(saturation.value, 2 * stats.norm.sf(math.log(99) / 6), 10_000)

    def share(d):
        p = 1 / (1 + math.exp(-d))
        return -(p * math.log(p) + (1 - p) * math.log1p(-p)) / math.log(2) * stats.norm.pdf(d / 6) / 6

    expected = integrate.quad(share, -30, 30)[0]
    assert entropy.value == pytest.approx(expected, abs=4 * 0.4 / 100)  # its SD is below 0.4
    assert entropy.interval[0] < entropy.value < entropy.interval[1]


@pytest.mark.parametrize("keys", [2, 7, 64])
def test_attention_to_all_keys_alike_and_to_one(keys):
    class Attend(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, q, k):
            return F.scaled_dot_product_attention(q, k, k, scale=self.scale)

    q, k = torch.ones(3, 2, 5, 1), torch.arange(keys).float().view(keys, 1).expand(3, 2, keys, 1)
    for scale, saturated, spread in ((0.0, 0.0, 1.0), (50.0, 1.0, 0.0)):
        readings = take(Moment(Attend(scale), 1, call=record_call((q, k), {})))
        assert [each.value for each in readings[:2]] == pytest.approx([saturated, spread], abs=1e-6)
