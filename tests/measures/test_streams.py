from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import InputError, StatisticError
from holdfast.core.site import Site
from holdfast.live.moment import Moment
from holdfast.live.replay import record_call
from holdfast.measures import WATCHABLE
from holdfast.measures.stream_gradient import stream_gradient
from holdfast.measures.stream_rms import stream_rms
from holdfast.measures.stream_share import stream_share
from holdfast.measures.stream_shift import stream_shift

WHERE = {"site": Site("head", "input", leaf="a"), "step": 3}


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.cat([self.a(x), 100 * self.b(x)], dim=1))


def take(model, *, step=1, loss_fn=F.mse_loss, batch=None):
    """All readings of streams on one batch."""
    inputs = batch[0]
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    call = record_call(args, inputs if isinstance(inputs, dict) else {})
    found = WATCHABLE["stream-share"].start()(Moment(model, step, call=call))
    if loss_fn is not None:
        found += WATCHABLE["stream-gradient"].start()(Moment(model, step, loss_fn=loss_fn, batch=batch))
    return found


def test_of_a_model_with_a_loss():
    x = torch.randn(64, 4)
    found = take(Fused(), step=5, batch=(x, torch.zeros(64, 2)))
    values = {(each.measure, each.site.leaf): each.value for each in found}
    assert len(values) == len(found) == 8
    assert {(str(each.site.at(leaf="")), each.step, each.n) for each in found} == {("net/head:input#0@train", 5, 64)}
    assert values["stream-rms", "b"] > 50 * values["stream-rms", "a"]
    assert values["stream-share", "b"] > 0.95
    assert values["stream-gradient", "b"] > 0.95
    assert values["stream-shift", "a"] == pytest.approx(values["stream-shift", "b"])
    for measure in ("stream-share", "stream-gradient"):
        assert values[measure, "a"] + values[measure, "b"] == pytest.approx(1)


def test_of_a_model_without_a_loss():
    found = take(Fused(), loss_fn=None, batch=(torch.randn(64, 4), None))
    assert sorted({each.measure for each in found}) == ["stream-rms", "stream-share", "stream-shift"]
    assert take(nn.Linear(2, 2), loss_fn=None, batch=(torch.randn(64, 2), None)) == []
    with pytest.raises(InputError, match="expected a moment with the forward to repeat"):
        WATCHABLE["stream-rms"].start()(Moment(Fused(), 1))


@pytest.mark.parametrize(
    ("loss_fn", "got"),
    [
        (lambda y, t: y - t, r"shape \(64, 2\)"),
        (lambda y, t: (y - t).sum().detach(), "one without a graph"),
        (lambda y, t: (y - t).sum().item(), "float"),
    ],
)
def test_losses_that_are_none(loss_fn, got):
    with pytest.raises(InputError, match=f"expected a loss that.*got (a )?{got}"):
        take(Fused(), loss_fn=loss_fn, batch=(torch.randn(64, 4), torch.zeros(64, 2)))
    with pytest.raises(InputError, match=r"a loss_fn\(output, targets\); got none"):
        _ = Moment(Fused(), 1, batch=(torch.zeros(1, 4), 0)).labelled


def test_labels_that_are_missing():
    with pytest.raises(InputError, match="expected targets for the loss; got None, with which it fails"):
        take(Fused(), loss_fn=F.cross_entropy, batch=(torch.randn(64, 4), None))
    assert take(Fused(), loss_fn=lambda y, _: y.square().mean(), batch=(torch.randn(64, 4), None))


def test_inputs_by_name_and_in_tuples():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x, y):
            return self.head(x + y)

    x, y = torch.randn(64, 4), torch.randn(64, 4)
    by_name = take(Two(), batch=({"x": x, "y": y}, torch.zeros(64, 2)))
    in_tuple = take(Two(), batch=((x, y), torch.zeros(64, 2)))
    for found in (by_name, in_tuple):
        assert [each.site.leaf for each in found if each.measure == "stream-rms"] == ["input#0", "input#1"]


def test_positions_added_to_tokens_have_a_size_and_no_share():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(10, 8), nn.Embedding(5, 8)

        def forward(self, x):
            return self.tokens(x) + self.positions(torch.arange(5))[None]

    x = torch.randint(10, (64, 5))
    found = take(Tokens(), loss_fn=None, batch=(x, None))
    values = {(each.measure, each.site.leaf): each.value for each in found}
    assert sorted(name for measure, name in values if measure == "stream-rms") == ["positions", "tokens"]
    assert {each.n for each in found} == {64}
    assert values["stream-share", "positions"] == pytest.approx(0, abs=1e-12)
    assert values["stream-share", "tokens"] == pytest.approx(1)


def test_inconclusive():
    x, nan = torch.randn(8, 3), torch.full((8, 3), math.nan)
    assert stream_rms(nan, **WHERE) is None
    assert stream_rms(x[:0], **WHERE) is None
    assert stream_rms(x[:1], **WHERE).interval is None
    assert stream_shift(x, [nan], **WHERE) is None
    assert stream_shift(x[:1], [x[:1]], **WHERE) is None
    assert stream_shift(torch.ones(8, 3), [torch.zeros(8, 2)], **WHERE) is None
    sites = {"sites": [WHERE["site"]] * 2, "step": 3}
    assert stream_share([x, nan], **sites) == []
    assert stream_share([x[:1], x[:1]], **sites) == []
    assert stream_share([torch.ones(8, 3)] * 2, **sites) == []
    assert stream_share([x, -x], **sites) == []
    assert stream_share([], **sites) == []
    assert stream_gradient([], **sites, n=8) == []
    assert stream_gradient([torch.zeros(3)] * 2, **sites, n=8) == []
    assert stream_gradient([x, nan], **sites, n=8) == []


def test_wrong_shapes_are_refused():
    x = torch.randn(8, 3)
    with pytest.raises(StatisticError, match=r"other streams of the same 8 samples; got \[4\] samples"):
        stream_shift(x, [x[:4]], **WHERE)
    with pytest.raises(StatisticError, match="other streams"):
        stream_shift(x, [], **WHERE)
    with pytest.raises(StatisticError, match=r"contributions of one shape; got \(8, 3\) and \(8, 2\)"):
        stream_share([x, x[:, :2]], sites=[WHERE["site"]] * 2, step=3)
