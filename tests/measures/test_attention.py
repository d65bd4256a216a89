from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from holdfast.core.reading import Table
from holdfast.core.site import Site
from holdfast.live.attention import Attended
from holdfast.live.moment import Moment
from holdfast.live.replay import record_call
from holdfast.measures import WATCHABLE
from holdfast.measures.attention_entropy import attention_entropy
from holdfast.measures.attention_saturation import attention_saturation

SITE = Site("block", "output", leaf="scores")


def test_rows_without_a_choice_do_not_count():
    rows = torch.full((3, 2, 4), 0.5)
    rows[:, :, 0], rows[0, 0, 1], rows[1, 1, 2], rows[2] = math.nan, 0.995, 0.99, math.nan
    attended = Attended(SITE, rows, rows, 4)
    saturation, entropy = attention_saturation(attended, step=2), attention_entropy(attended, step=2)
    assert saturation.value == pytest.approx(1 / 12)  # above 0.99, not at it
    assert (saturation.n, entropy.n) == (2, 2)
    assert saturation.interval[0] < saturation.value < saturation.interval[1]
    means = [(0.5 * 5 + 0.995) / 6, (0.5 * 5 + 0.99) / 6]
    assert entropy.value == pytest.approx(sum(means) / 2)
    half = 12.706 * abs(means[0] - means[1]) / 2
    assert entropy.interval == pytest.approx((entropy.value - half, entropy.value + half), abs=1e-5)
    assert attention_entropy(Attended(SITE, rows[:1], rows[:1], 4), step=2).interval is None
    for measure in (attention_saturation, attention_entropy):
        assert measure(Attended(SITE, rows[2:], rows[2:], 4), step=2) is None
        assert measure(Attended(SITE, rows[:0], rows[:0], 4), step=2) is None
        assert measure(attended, step=2, site=Site("other", "output")).site.module == "other"


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def test_of_a_transformer_per_layer_and_per_head():
    model, x = encoder(), torch.randn(6, 5, 8)
    with torch.no_grad():
        # head 1 of layer 1: each position finds itself; a factor that makes it certain
        weight = model.layers[1].self_attn.in_proj_weight
        weight[4:8] = weight[12:16] = 30 * torch.linalg.qr(torch.randn(8, 4))[0].T
    found = WATCHABLE["attention-entropy"].start()(Moment(model, 3, call=record_call((x,), {})))
    readings = {(each.measure, each.site.module): each for each in found if not isinstance(each, Table)}
    assert set(readings) == {
        (measure, f"layers.{k}.self_attn") for k in (0, 1) for measure in ("attention-saturation", "attention-entropy")
    }
    assert readings["attention-saturation", "layers.0.self_attn"].value == 0.0
    assert readings["attention-saturation", "layers.1.self_attn"].value > 0.4
    saturation, entropy = (each for each in found if isinstance(each, Table))
    assert saturation.rows == tuple(f"net/layers.{k}.self_attn:output[scores]#0@train" for k in (0, 1))
    assert saturation.columns == ("head 0", "head 1")
    assert saturation.values[1][1] > 0.8 > 0.1 > saturation.values[1][0]
    assert entropy.values[1][1] < 0.1 < 0.6 < entropy.values[1][0]
    assert {each.n for each in found} == {6}


def test_models_without_attention_and_with_one_head():
    assert WATCHABLE["attention-entropy"].start()(Moment(nn.ReLU(), 1, call=record_call((torch.randn(2),), {}))) == []
    net, x = nn.MultiheadAttention(4, 1), torch.randn(3, 5, 4)
    found = WATCHABLE["attention-entropy"].start()(Moment(net, 1, call=record_call((x, x, x), {})))
    assert [each.measure for each in found] == ["attention-saturation", "attention-entropy"]


def test_nothing_is_touched():
    model, x = encoder(), torch.randn(6, 5, 8)
    call = record_call((x,), {})
    model(x).sum().backward()
    before = copy.deepcopy(model.state_dict()), [each.grad.clone() for each in model.parameters()]
    state = torch.get_rng_state()
    assert WATCHABLE["attention-saturation"].start()(Moment(model, 1, call=call))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(a, b.grad) for a, b in zip(before[1], model.parameters(), strict=True))
