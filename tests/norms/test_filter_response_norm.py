import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.core.protocols import Telemetry
from holdfast.norms.filter_response_norm import TLU, FilterResponseNorm
from holdfast.norms.make import make

LARGE = (9, 4, 23, 31)  # above 32 KB: by the kernel


def random(channels, **settings):
    norm = FilterResponseNorm(channels, **settings)
    for each in norm.parameters():
        nn.init.normal_(each)
    return norm


def reference(x, weight, bias, threshold=None, learnt_eps=(0.0,), eps=1e-6):
    """The paper's formula in float64, channel by channel of each sample."""
    rows = []
    for sample in x.double():
        channels = []
        for c, values in enumerate(sample):
            square = values.pow(2).mean()
            y = weight[c] * values / (square + eps + abs(learnt_eps[0])).sqrt() + bias[c]
            channels.append(y if threshold is None else torch.maximum(y, threshold[c]))
        rows.append(torch.stack(channels))
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 6), (3, 4, 2, 5), (2, 4, 2, 2, 3), LARGE])
@pytest.mark.parametrize("settings", [{}, {"tlu": False}, {"learn_eps": True}, {"learn_eps": True, "tlu": False}])
def test_against_the_formula_forward_and_backward(shape, settings):
    norm = random(4, **settings)
    named = {name: each.detach().double().requires_grad_() for name, each in norm.named_parameters()}
    x, dy = (torch.randn(shape) * 3).requires_grad_(), torch.randn(shape)
    wide = x.detach().double().requires_grad_()
    out, expected = norm(x), reference(wide, **named)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    out.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-4, atol=1e-5)
    for name, each in norm.named_parameters():
        torch.testing.assert_close(each.grad.double(), named[name].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 6), LARGE])
@pytest.mark.parametrize("settings", [{}, {"tlu": False}, {"learn_eps": True}])
def test_the_spec_computes_the_same(shape, settings):
    norm = random(4, **settings)
    x = torch.randn(shape)
    parameters = {name: each.detach().double() for name, each in norm.named_parameters()}
    eps = norm.eps + abs(float(parameters.get("learnt_eps", 0.0)))
    torch.testing.assert_close(norm(x).double(), norm.spec.reference(x.double(), parameters, eps), rtol=1e-5, atol=1e-5)
    body = "γ_c · x / √(m_nc + ε) + β_c"
    assert norm.spec.formula == (f"y = max({body}, τ_c)" if norm.threshold is not None else f"y = {body}")


def test_it_starts_as_the_paper_says():
    norm = FilterResponseNorm(3, learn_eps=True)
    first = {name: each.tolist() for name, each in norm.state_dict().items()}
    assert first.pop("learnt_eps") == [pytest.approx(1e-4)]
    assert first == {"weight": [1.0] * 3, "bias": [0.0] * 3, "threshold": [0.0] * 3}
    norm = random(3, learn_eps=True)
    norm.reset_parameters()
    assert all(torch.equal(one, two) for one, two in zip(norm.parameters(), random_reset().parameters(), strict=True))


def random_reset():
    return FilterResponseNorm(3, learn_eps=True)


def test_with_one_position_a_learnt_eps_leaves_more_than_the_sign():
    x = torch.tensor([[0.01, 1.0], [0.02, 2.0]])
    fixed, learnt = FilterResponseNorm(2, tlu=False), FilterResponseNorm(2, tlu=False, learn_eps=True)
    torch.testing.assert_close(fixed(x)[0], fixed(x)[1], rtol=1e-2, atol=0)
    with torch.no_grad():
        learnt.learnt_eps.fill_(-1.0)
    torch.testing.assert_close(learnt(x), x / (x.square() + 1e-6 + 1.0).sqrt())


def test_one_sample_does_not_see_another():
    norm, x = random(4), torch.randn(LARGE)
    assert torch.equal(norm(x)[:1], norm(torch.cat([x[:1], x[1:] * 5 + 3])[:])[:1])


@pytest.mark.parametrize("settings", [{}, {"tlu": False}, {"learn_eps": True}])
@pytest.mark.parametrize("shape", [(3, 2), (2, 2, 3)])
def test_gradcheck(settings, shape):
    norm = random(2, **settings).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in norm.named_parameters()]

    def layer(x, *parameters):
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(layer, (x, *norm.parameters()))
    assert torch.autograd.gradgradcheck(layer, (x, *norm.parameters()), atol=1e-4)


@pytest.mark.parametrize("size", [1e30, 1e-3, 3e38])
@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_huge_inputs_against_float64(size, learn, last):
    norm = random(4, learn_eps=learn)
    named = {name: each.detach().double() for name, each in norm.named_parameters()}
    x = (torch.rand(2, 4, 5, 5) * 2 - 1) * size
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    wide = x.detach().double().requires_grad_()
    out, expected, dy = norm(x), reference(wide, **named), torch.randn(x.shape)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    out.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(x.grad.double() * size, wide.grad * size, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["half", "float"])
@pytest.mark.parametrize("shape", [(5, 4, 3), LARGE])
def test_halves_are_computed_in_float32(dtype, weights, shape):
    norm = random(4)
    norm = norm.to(dtype) if weights == "half" else norm
    x = torch.randn(shape).to(dtype)
    out = norm(x)
    assert out.dtype == dtype
    expected = copy.deepcopy(norm).float()(x.float())
    torch.testing.assert_close(out.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == dtype
        assert norm(x.float()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
@pytest.mark.parametrize("learn", [True, False])
def test_an_empty_batch_gives_gradients_of_zero(shape, learn):
    norm = FilterResponseNorm(3, learn_eps=learn)
    x = torch.empty(shape, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.shape == shape
    assert all(torch.equal(each.grad, torch.zeros_like(each)) for each in norm.parameters())


@pytest.mark.parametrize("kind", [FilterResponseNorm, TLU])
def test_what_they_refuse(kind):
    with pytest.raises(InputError, match="unsqueeze"):
        kind(3)(torch.randn(3))
    with pytest.raises(InputError, match=rf"{kind.__name__}\(4\)"):
        kind(3)(torch.randn(2, 4, 3))
    with pytest.raises(InputError, match="floating"):
        kind(3)(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="eps of 0 or more"):
        FilterResponseNorm(3, eps=-1e-6)


def test_tlu_alone_is_the_layers_own():
    norm, tlu = random(4), TLU(4)
    bare = FilterResponseNorm(4, tlu=False)
    bare.load_state_dict({name: norm.state_dict()[name] for name in ("weight", "bias")}, strict=True)
    tlu.load_state_dict({"threshold": norm.threshold.detach()}, strict=True)
    x = torch.randn(LARGE)
    assert torch.equal(tlu(bare(x)), norm(x))
    assert torch.equal(TLU(4)(x), x.relu())
    assert TLU(4)(x.half()).dtype == torch.float16
    y = x[:2, :, :2, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(tlu.double(), (y,))
    assert torch.autograd.gradgradcheck(tlu, (y,))


def test_telemetry_is_the_mean_square_of_the_last_training_pass():
    for shape in ((3, 4, 5), LARGE):
        norm, x = random(4), torch.randn(shape)
        assert isinstance(norm, Telemetry)
        assert norm.telemetry() == {}
        norm(x)
        expected = x.double().square().flatten(2).mean(2)
        torch.testing.assert_close(norm.telemetry()["mean_square"].double(), expected, rtol=1e-5, atol=0)
        for copied in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
            assert copied.telemetry() == {}
            assert torch.equal(copied(x), norm(x))


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), LARGE])
def test_checkpoints_layout_meta_and_vmap(shape):
    norm, other = random(4), make("filter-response", 4, 2)
    buffer = io.BytesIO()
    torch.save(norm.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer), strict=True)
    x = torch.randn(shape)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(other(x), norm(x))
    assert norm(last).stride() == last.stride()
    torch.testing.assert_close(norm(last), norm(x), rtol=1e-5, atol=1e-5)
    assert FilterResponseNorm(4, device="meta")(torch.empty(2, 4, 3, device="meta")).shape == (2, 4, 3)
    torch.testing.assert_close(torch.vmap(norm)(x.unsqueeze(1)), norm(x).unsqueeze(1), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiles_whole():
    # In a process of its own: the shape checks of the tests cannot be traced.
    script = """
import torch
from holdfast.norms.filter_response_norm import FilterResponseNorm
for shape in ((12, 8), (12, 8, 30, 31)):
    x = torch.randn(shape)
    for learn in (True, False):
        norm = FilterResponseNorm(8, learn_eps=learn)
        torch.testing.assert_close(torch.compile(norm, fullgraph=True, backend="aot_eager")(x), norm(x))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
