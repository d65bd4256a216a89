import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from holdfast.core.errors import InputError
from holdfast.norms import make
from holdfast.norms.qk_norm import QKNorm

KINDS = [("rms", None), ("rms", 3), ("layer", None), ("layer", 3), ("l2", None), ("l2", 3)]


def shaken(kind="rms", heads=None, **settings):
    norm = QKNorm(4, kind, heads, bias=kind == "layer", **settings)
    for each in norm.parameters():
        nn.init.uniform_(each, 0.5, 2.0)
    return norm


def inputs(keys=3, dtype=torch.float32, seed=0, **settings):
    draw = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(2, heads, time, 4, generator=draw) for heads, time in ((3, 5), (keys, 7)))
    return ((q * 3 + 1).to(dtype).requires_grad_(**settings), (k - 2).to(dtype).requires_grad_(**settings))


def formula(norm, q, k):
    """In float64, of one side after the other."""
    out = []
    for x, side in ((q.double(), norm.query), (k.double(), norm.key)):
        if norm.kind == "l2":
            out.append(x / x.norm(dim=-1, keepdim=True))
            continue
        if norm.kind == "rms":
            y = x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
        else:
            y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        heads = (lambda each: each.double()) if norm.heads is None else (lambda each: each.double().unsqueeze(1))
        y = y * heads(side.weight)
        out.append(y if norm.kind == "rms" else y + heads(side.bias))
    if norm.kind == "l2":
        out[0] = out[0] * norm.temperature.double().view(-1, 1, 1) * math.sqrt(norm.head_dim)
    return tuple(out)


@pytest.mark.parametrize(("kind", "heads"), KINDS)
@pytest.mark.parametrize("split", [False, True])
def test_each_kind_is_its_formula(kind, heads, split):
    norm = shaken(kind, heads)
    q, k = inputs()
    if split:  # heads split off behind the time: not contiguous
        q, k = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (q, k))
    for got, want in zip(norm(q, k), formula(norm, q, k), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    again = norm.eval()(q, k)
    torch.testing.assert_close(again[0].double(), formula(norm, q, k)[0], rtol=1e-5, atol=1e-5)
    assert heads is not None or again[0].stride() == q.stride()


@pytest.mark.parametrize("heads", [None, 3])
def test_l2_gives_the_papers_attention(heads):
    norm = shaken("l2", heads)
    q, k = inputs()
    v = torch.randn(2, 3, 7, 4)
    # Equation 2 of the paper: softmax(g · q̂ k̂ᵀ) v.
    logits = norm.temperature.view(-1, 1, 1) * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
    torch.testing.assert_close(F.scaled_dot_product_attention(*norm(q, k), v), logits.softmax(-1) @ v)


def test_logits_are_bounded_whatever_the_lengths():
    q, k = inputs()
    for scale in (1e-3, 1.0, 1e4):
        logits = torch.matmul(*(each if i == 0 else each.mT for i, each in enumerate(QKNorm(4)(q * scale, k)))) / 2
        assert logits.abs().max() <= 2.0001
    assert QKNorm(4, "l2").temperature.tolist() == [10.0]
    assert math.log2(32 * 32 - 32) == pytest.approx(10, abs=0.05)


@pytest.mark.parametrize(("kind", "heads"), KINDS)
def test_gamma_is_shared_or_a_heads_own(kind, heads):
    state = QKNorm(4, kind, heads, key_heads=heads and 1).state_dict()
    if kind == "l2":
        assert {name: tuple(each.shape) for name, each in state.items()} == {"temperature": (heads or 1,)}
    else:
        shapes = [tuple(each.shape) for each in state.values()]
        assert shapes == ([(4,), (4,)] if heads is None else [(3, 4), (1, 4)])
        assert list(state) == ["query.weight", "key.weight"]
    frozen = QKNorm(4, kind, heads, affine=False)
    assert not any(each.requires_grad for each in frozen.parameters())
    frozen(*inputs())


@pytest.mark.parametrize("kind", ["rms", "layer", "l2"])
@pytest.mark.parametrize("heads", [None, 3])
def test_fewer_keys_heads_than_queries(kind, heads):
    norm = shaken(kind, heads, key_heads=heads and 1)
    q, k = inputs(keys=1)
    for got, want in zip(norm(q, k), formula(norm, q, k), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "heads"), KINDS)
def test_gradcheck(kind, heads):
    norm = shaken(kind, heads).double()
    q, k = (each.detach()[:1, :, :2].requires_grad_() for each in inputs(dtype=torch.float64))
    call = lambda q, k, *_: norm(q, k)  # noqa: E731
    assert torch.autograd.gradcheck(call, (q, k, *norm.parameters()))
    assert torch.autograd.gradgradcheck(call, (q, k, *norm.parameters()))


@pytest.mark.parametrize(("kind", "heads"), KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("narrow", [False, True])
def test_halves_are_computed_in_float32(kind, heads, dtype, narrow):
    norm = shaken(kind, heads).to(dtype if narrow else torch.float32)
    q, k = inputs(dtype=dtype, requires_grad=False)
    for got, want in zip(norm(q, k), copy.deepcopy(norm).float()(q.float(), k.float()), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, want.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(("kind", "heads"), KINDS)
def test_an_empty_batch(kind, heads):
    norm = shaken(kind, heads)
    for shape in ((0, 3, 5, 4), (2, 3, 0, 4)):
        q, k = torch.empty(shape, requires_grad=True), torch.empty(shape, requires_grad=True)
        out = norm(q, k)
        found = torch.autograd.grad(out[0].sum() + out[1].sum(), [q, k, *norm.parameters()])
        assert [each.shape for each in out] == [shape, shape]
        assert all(torch.equal(each, torch.zeros_like(each)) for each in found)


@pytest.mark.parametrize(("kind", "heads"), KINDS)
def test_vectors_of_zeros_and_of_great_length(kind, heads):
    norm = QKNorm(4, kind, heads)
    zero, huge = torch.zeros(1, 3, 2, 4), torch.tensor([3.0, -1.0, 2.0, 4.0]).expand(1, 3, 2, 4)
    assert all(torch.equal(each, zero) for each in norm(zero, zero))
    for power in (-40, 90) if kind != "layer" else (40,):
        eps = {} if kind == "layer" else {"eps": 0.0}
        precise = QKNorm(4, kind, heads, **eps)
        got, want = precise(huge * 2.0**power, huge), precise(huge, huge)
        torch.testing.assert_close(got, want, rtol=1e-4 if power < 0 else 1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: QKNorm(4, "l1"), 'kind="rms"'),
        (lambda: QKNorm(0), "1 feature"),
        (lambda: QKNorm(4, heads=0), "1 head"),
        (lambda: QKNorm(4, heads=2, key_heads=0), "1 head"),
        (lambda: QKNorm(4, key_heads=2), "heads of the queries"),
        (lambda: QKNorm(4, bias=True), "no β"),
        (lambda: QKNorm(4, temperature=2.0), 'kind="l2"'),
        (lambda: QKNorm(4, "l2", temperature=0), "above 0"),
        (lambda: QKNorm(4, "l2", temperature="warm"), "above 0"),
        (lambda: QKNorm(4, eps=-1.0), "eps"),
        (lambda: QKNorm(4)(torch.randn(2, 5, 4), torch.randn(2, 3, 5, 4)), r"q of shape \(batch, heads, time, 4\)"),
        (lambda: QKNorm(4)(torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 6)), "k of shape"),
        (lambda: QKNorm(4, heads=2)(torch.randn(2, 3, 5, 4), torch.randn(2, 2, 5, 4)), r"\(batch, 2, time, 4\)"),
        (lambda: QKNorm(4)(*[torch.ones(2, 3, 5, 4, dtype=torch.long)] * 2), "floating"),
        (lambda: make("qk", 4, dims=1), "position"),
    ],
)
def test_bad_inputs(call, match):
    with pytest.raises(InputError, match=match):
        call()


@pytest.mark.parametrize(("kind", "heads"), KINDS)
def test_copies_and_checkpoints(kind, heads):
    norm, (q, k) = shaken(kind, heads), inputs(requires_grad=False)
    want = norm(q, k)
    fresh = shaken(kind, heads)
    fresh.load_state_dict(norm.state_dict(), strict=True)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), fresh):
        assert other.telemetry() == {}
        assert all(torch.equal(got, each) for got, each in zip(other(q, k), want, strict=True))


@pytest.mark.parametrize(("kind", "heads"), KINDS)
def test_activation_checkpointing_gives_the_same_gradients(kind, heads):
    norm, gradients = shaken(kind, heads), []
    for call in (norm, lambda q, k: checkpoint(norm, q, k, use_reentrant=False)):
        q, k = inputs()
        a, b = call(q, k)
        gradients.append(torch.autograd.grad((a @ b.mT).square().sum(), [q, k, *norm.parameters()]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("kind", "heads"), KINDS)
def test_telemetry_of_both_sides(kind, heads):
    norm, (q, k) = shaken(kind, heads), inputs()
    assert norm.telemetry() == {}
    norm(q, k)
    told = norm.telemetry()
    if kind == "layer":
        torch.testing.assert_close(told["key_mean"].double().flatten(), k.detach().double().mean(-1).flatten())
    else:
        want = q.detach().double().square().mean(-1)
        torch.testing.assert_close(told["query_mean_square"].double().flatten(), want.flatten(), rtol=1e-5, atol=1e-6)
    norm.eval()(q * 2, k * 2)
    assert all(torch.equal(each, told[name]) for name, each in norm.telemetry().items())


def test_the_specification_is_what_is_computed():
    assert QKNorm(4).spec.formula == "y = γ_c · x / √(m_ns + ε)"
    assert QKNorm(4, "l2").spec.formula == "y = γ · x / max(‖x‖_ns, ε)"
    assert QKNorm(4, "layer", 2, affine=False).spec.formula == "y = (x − μ_ns) / √(σ²_ns + ε)"
    norm, (q, k) = shaken("layer").double(), inputs(dtype=torch.float64)
    torch.testing.assert_close(norm(q, k)[1], norm.spec.reference(k, dict(norm.key.named_parameters()), 1e-5))
    assert make("qk", 4, dims=2, kind="l2").kind == "l2"


@pytest.mark.parametrize(("kind", "heads"), KINDS)
def test_reset_as_the_constructor_left_it(kind, heads):
    norm, fresh = shaken(kind, heads), QKNorm(4, kind, heads, bias=kind == "layer")
    norm.reset_parameters()
    torch.testing.assert_close(dict(norm.state_dict()), dict(fresh.state_dict()), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "heads"), KINDS)
def test_compiles_whole(kind, heads):
    # In a process of its own: the shape checks of the tests cannot be traced.
    script = f"""
import torch
from holdfast.norms.qk_norm import QKNorm
norm, q, k = QKNorm(4, {kind!r}, {heads!r}), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)
torch.testing.assert_close(torch.compile(norm, fullgraph=True, backend="aot_eager")(q, k), norm(q, k))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
