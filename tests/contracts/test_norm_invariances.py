"""To what each normaliser is blind and to what it is not, which of them are one another, and who may see whom."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.norms.make import make

LAWS = ("matrix", "data", "vector", "shift", "sample")
EXACT = {"rtol": 1e-8, "atol": 1e-8}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def changed(law, weight, inputs):
    """What the law changes, of a linear layer and its inputs: the table of the paper of LayerNorm, and per channel."""
    weight, inputs = weight.clone(), inputs.clone()
    if law == "matrix":
        weight *= 3.7
    if law == "data":
        inputs *= 3.7
    if law == "vector":
        weight[1] *= 3.7
    if law == "shift":
        inputs += 2.0
    if law == "sample":
        inputs[1] *= 3.7
    return torch.einsum("oi,ni...->no...", weight, inputs)


@pytest.mark.parametrize("law", LAWS)
def test_blind_to_what_the_table_says_and_to_nothing_else(case, law):
    assert case.own.invariant is not None, (
        f"add to TAILORED[{case.kind!r}] in tests/contracts/conftest.py: invariant= of matrix, vector, shift, sample"
    )
    layer = case.make(**({"eps": 0.0} if case.offers("eps") else {})).double()
    weight, inputs = draw(6, 4), draw(*case.x().shape[:1], 4, *case.x().shape[2:], seed=1)
    before = case.call(layer, changed("", weight, inputs))
    after = case.call(layer, changed(law, weight, inputs))
    if ("matrix" if law == "data" else law) in case.own.invariant.split():
        torch.testing.assert_close(after, before, **EXACT)
    else:
        assert (after - before).abs().max() > 1e-2


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_one_broken_sample_leaves_the_others_their_bits(alone, broken, kernel):
    layer = alone.make()
    x = alone.x(wide=kernel)
    x = x[: len(x) // 2 * 2]
    spoilt = x.clone()
    spoilt[1].view(-1)[::5] = broken
    others = [0, *range(2, len(x))]
    outputs = []
    for each in (x, spoilt):
        each = each.clone().requires_grad_()
        y = alone.call(layer, each)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        outputs.append((y.detach()[others], each.grad[others], y.detach()[1]))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert not torch.equal(outputs[0][2], outputs[1][2])


def test_a_sample_of_the_batch_is_seen_where_statistics_are_shared(case):
    x = case.x()
    other = x.clone()
    other[1] += torch.linspace(-3, 4, other[1].numel()).view_as(other[1])
    layer = case.make()
    same = torch.equal(case.call(layer, x)[0], case.call(layer, other)[0])
    assert same is not case.own.shared


def test_training_and_evaluation_are_one_function_where_nothing_is_kept(case):
    if case.own.shared:
        pytest.skip("evaluation takes running statistics")
    layer, x = case.make(), case.x()
    torch.testing.assert_close(case.call(layer.train(), x), case.call(layer.eval(), x), rtol=0, atol=0)


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(5)), seed=st.integers(0, 99))
def test_samples_in_another_order(case, order, seed):
    """No member sees the order of a batch that is one chunk."""
    layer, x = case.make().double(), case.x(seed=seed).double()
    y = case.call(layer, x)
    torch.testing.assert_close(case.call(layer, x[list(order)]), y[list(order)], **EXACT)


def test_positions_in_another_order(case):
    """No member sees where a position is."""
    if case.dims == 0:
        pytest.skip("has no positions")
    layer, x = case.make().double(), case.x().double()
    y = case.call(layer, x)
    torch.testing.assert_close(case.call(layer, x.flip(-1)), y.flip(-1), **EXACT)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(1e-3, 1e3),
    sign=st.sampled_from([-1.0, 1.0]),
    shift=st.floats(-100, 100),
    kind=st.sampled_from(["batch", "instance", "ghost", "renorm", "sync"]),
)
def test_an_affine_change_of_a_channel_leaves_its_sign(scale, sign, shift, kind):
    layer = make(kind, 3, 1, eps=0.0, affine=False).double()
    x = draw(4, 3, 11)
    torch.testing.assert_close(layer(sign * scale * x + shift), sign * layer(x), rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 5),
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    positions=st.integers(2, 70),
    affine=st.booleans(),
)
def test_group_norm_is_layer_norm_or_instance_norm_at_its_ends(samples, groups, width, positions, affine):
    channels = groups * width
    x = draw(samples, channels, positions).float()
    one = make("group", channels, 1, groups=1, affine=affine)
    torch.testing.assert_close(one(x), nn.functional.layer_norm(x, x.shape[1:]), rtol=1e-6, atol=2e-6)
    each = make("group", channels, 1, groups=channels, affine=affine)
    torch.testing.assert_close(each(x), make("instance", channels, 1)(x), rtol=1e-6, atol=2e-6)
    of_groups = make("group", channels, 1, groups=groups, affine=affine)(x)
    by_hand = nn.functional.layer_norm(x.view(samples, groups, -1), (width * positions,)).view_as(x)
    torch.testing.assert_close(of_groups, by_hand, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("size", [(5, 3), (211, 97)])
@pytest.mark.parametrize("samples", [1, 3])
def test_group_norm_of_one_group_is_layer_norm_over_all(size, samples):
    x = draw(samples, 6, *size).float()
    ours = make("group", 6, 2, groups=1)(x)
    torch.testing.assert_close(ours, nn.LayerNorm((6, *size))(x), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("size", [(5, 3), (211, 97)])
def test_one_sample_of_batch_layer_norm_is_layer_norm(size):
    x = draw(1, 6, *size).float()
    ours = make("batch-layer", 6, 2)(x)
    torch.testing.assert_close(ours, nn.LayerNorm((6, *size))(x), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("part", ["instance", "layer", "batch"])
def test_switchable_norm_is_each_of_its_parts(part):
    x = draw(3, 6, 5, 3).float()
    layer = make("switchable", 6, 2)
    for each in (layer.mean_weight, layer.variance_weight):
        each.data[["instance", "layer", "batch"].index(part)] = 50.0
    wanted = nn.LayerNorm((6, 5, 3))(x) if part == "layer" else make(part, 6, 2)(x)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=2e-6)


def test_batch_renorm_with_open_clips_trains_the_function_of_evaluation():
    x = draw(7, 6, 5).float() * 1.2 + 0.3
    layer = make("renorm", 6, 1, warm_up=(0, 0, 0), momentum=0.0)
    layer.running_mean += 0.2
    torch.testing.assert_close(layer(x), layer.eval()(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(make("renorm", 6, 1)(x), layer(x), atol=1e-2)


def test_layer_norm_of_centred_vectors_is_rms_norm():
    x = draw(5, 6).float()
    x -= x.mean(1, keepdim=True)
    torch.testing.assert_close(make("layer", 6, 0, eps=1e-6)(x), make("rms", 6, 0, eps=1e-6)(x), rtol=1e-5, atol=1e-6)
