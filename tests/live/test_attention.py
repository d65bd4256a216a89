"""Against torch's own weights (`need_weights=True`) and scores written out, to 1e-5."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.live.attention import Attentions
from holdfast.live.replay import record_call


class Function(nn.Module):
    """A model whose forward is given, with its leaves."""

    def __init__(self, function, **leaves):
        super().__init__()
        self.function = function
        for name, leaf in leaves.items():
            setattr(self, name, leaf)

    def forward(self, *args):
        return self.function(self, *args)


def attentions(model, *args, options=None, **kwargs):
    model = model if isinstance(model, nn.Module) else Function(model)
    found = Attentions(**(options or {}))
    found.follow(model, record_call(args, kwargs))
    return found


def figures(p, allowed=None):
    """The definitions, written out."""
    allowed = torch.full(p.shape[:-1], p.shape[-1]) if allowed is None else allowed.expand(p.shape).sum(-1)
    entropy = torch.distributions.Categorical(probs=p.nan_to_num(1.0)).entropy() / allowed.log()
    free = allowed > 1
    return p.amax(-1).where(free, math.nan), entropy.where(free, math.nan)


def assert_same(found, p, allowed=None):
    largest, entropy = figures(p, allowed)
    torch.testing.assert_close(found.largest, largest, rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(found.entropy, entropy, rtol=0, atol=1e-5, equal_nan=True)


def heads(length, samples=2, count=3, width=4):
    return torch.randn(samples, count, length, width)


BOOLEAN = torch.tensor([[True, True, False, True, True, False, True]]) & torch.rand(5, 7).gt(0.2)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, None),
        ({"scale": 0.7}, None),
        ({"is_causal": True}, torch.ones(5, 7).tril().bool()),
        ({"attn_mask": BOOLEAN}, BOOLEAN),
        ({"attn_mask": torch.where(BOOLEAN, 0.3, -math.inf)}, BOOLEAN),
        ({"attn_mask": torch.where(BOOLEAN, 0.0, torch.finfo(torch.float32).min)}, BOOLEAN),
        ({"dropout_p": 0.5}, None),
    ],
)
def test_scaled_dot_product(options, allowed):
    q, k, v = heads(5), heads(7), heads(7)
    found = attentions(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, **options), q, k, v)
    scores = q @ k.transpose(2, 3) * options.get("scale", 0.5)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    (one,) = found.found
    assert_same(one, scores.softmax(-1), allowed)
    assert (str(one.site), one.queries) == ("net/:output[scores]#0@train", 5)


def test_grouped_queries_and_inputs_without_heads():
    q, k = heads(5, count=4), heads(7, count=2)
    found = attentions(lambda m, q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True), q, k)
    assert_same(found.found[0], (q @ k.repeat_interleave(2, 1).transpose(2, 3) / 2).softmax(-1))
    q = torch.randn(2, 5, 4)
    found = attentions(lambda m, q: F.scaled_dot_product_attention(q, q, q), q)
    assert_same(found.found[0], (q @ q.transpose(1, 2) / 2).softmax(-1).unsqueeze(1))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"kdim": 6, "vdim": 6}, {"add_bias_kv": True, "add_zero_attn": True}]
)
@pytest.mark.parametrize("masks", ["none", "square", "padding", "both", "per head"])
def test_multi_head_attention_is_torchs(batch_first, options, masks):
    net = nn.MultiheadAttention(8, 2, batch_first=batch_first, dropout=0.0, **options)
    nn.init.normal_(net.in_proj_bias) if net.in_proj_bias is not None else None
    q, k = torch.randn(3, 5, 8), torch.randn(3, 7, options.get("kdim", 8))
    if not batch_first:
        q, k = q.transpose(0, 1), k.transpose(0, 1)
    given = {}
    square = torch.rand(5, 7) < 0.3
    square[:, :2] = False
    padding = torch.zeros(3, 7).bool()
    padding[1, 4:] = True
    if masks in ("square", "both"):
        given["attn_mask"] = torch.where(square, -math.inf, 0.2) if masks == "square" else square
    if masks == "per head":
        given["attn_mask"] = torch.zeros(6, 5, 7).masked_fill(torch.rand(6, 5, 1) < 0.5, 0.4)
    if masks in ("padding", "both"):
        given["key_padding_mask"] = padding
    want = net(q, k, k, **given, need_weights=True, average_attn_weights=False)[1].detach()
    found = attentions(net, q, k, k, **given, need_weights=False)
    assert_same(found.found[0], want, want > 0)


def test_padding_is_no_query_of_a_self_attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    (found,) = attentions(layer, torch.randn(2, 5, 8), src_key_padding_mask=padding).found
    assert str(found.site) == "net/self_attn:output[scores]#0@train"
    assert found.largest.isnan().tolist() == padding[:, None].expand(2, 2, 5).tolist()


def test_the_only_allowed_key_is_no_choice():
    q = heads(5)
    (found,) = attentions(lambda m, q: F.scaled_dot_product_attention(q, q, q, is_causal=True), q).found
    assert found.largest.isnan()[0, 0].tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("softmax", [lambda s: F.softmax(s, dim=-1), lambda s: s.softmax(3), nn.Softmax(-1)])
def test_attention_written_by_hand(softmax):
    def forward(m, q, k):
        p = m.drop(softmax((q @ k.transpose(2, 3)).masked_fill(mask, -math.inf)))
        return F.softmax(p.view(2, 3, 5, 7) @ k, dim=-1) + 1  # the second is no attention

    mask = torch.rand(5, 7) < 0.3
    mask[:, :2] = False
    q, k = heads(5), heads(7)
    found = attentions(Function(forward, drop=nn.Dropout(0.5)), q, k)
    assert len(found.found) == 1
    assert_same(found.found[0], (q @ k.transpose(2, 3)).masked_fill(mask, -math.inf).softmax(-1), ~mask)


def test_a_classifiers_softmax_is_no_attention():
    assert not attentions(lambda m, x: x.softmax(-1), torch.randn(2, 3, 4, 5)).found
    assert not attentions(lambda m, x: x.softmax(-1) @ x.T, torch.randn(4, 5)).found


def test_many_queries_are_sampled_by_a_private_generator():
    q = heads(200)
    function = lambda m, q: F.scaled_dot_product_attention(q, q, q)  # noqa: E731
    state = torch.get_rng_state()
    (whole,) = attentions(function, q).found
    (part,) = attentions(function, q, options={"most_scores": 2 * 3 * 50 * 200}).found
    assert torch.equal(state, torch.get_rng_state())
    assert (tuple(part.largest.shape), part.queries) == ((2, 3, 50), 200)
    assert part.largest.mean().item() == pytest.approx(whole.largest.mean().item(), rel=0.1)
    (least,) = attentions(function, q, options={"most_scores": 1}).found
    assert tuple(least.largest.shape) == (1, 3, 1)
    known = {round(each, 5) for each in whole.largest.flatten().tolist()}
    assert {round(each, 5) for each in part.largest.flatten().tolist()} <= known


def test_half_precision_and_autocast_are_computed_in_float32():
    q = heads(6).bfloat16()
    function = lambda m, q: F.scaled_dot_product_attention(q, q, q)  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = attentions(function, q).found
    assert_same(found, (q.float() @ q.float().transpose(2, 3) / 2).softmax(-1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_cannot_be_computed_again_is_told():
    nested = torch.nested.nested_tensor([torch.randn(2, 3, 4), torch.randn(2, 3, 4)], layout=torch.jagged)
    q = nested.transpose(1, 2)
    found = attentions(lambda m, q: F.scaled_dot_product_attention(q, q, q), q)
    assert not found.found
    assert found.not_seen == [
        "the attention scores inside scaled_dot_product_attention of (model): nested values are not measured"
    ]
