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
from holdfast.norms.dynamic_tanh import DynamicTanh
from holdfast.norms.make import make


def random(channels, **settings):
    norm = DynamicTanh(channels, **settings)
    for each in norm.parameters():
        nn.init.normal_(each)
    return norm


def reference(norm, x):
    """The paper's formula in float64, with the channels moved to the last axis and back."""
    wide = x.double() if norm.channels_last else x.double().movedim(1, -1)
    y = norm.weight.double() * (norm.alpha.double() * wide).tanh() + norm.bias.double()
    return y if norm.channels_last else y.movedim(-1, 1)


SHAPES = [(True, (5, 3)), (True, (3,)), (True, (2, 4, 3)), (False, (5, 3)), (False, (2, 3, 4)), (False, (2, 3, 4, 5))]


@pytest.mark.parametrize(("last", "shape"), SHAPES)
def test_against_the_formula_forward_and_backward(last, shape):
    norm = random(3, channels_last=last)
    wide = copy.deepcopy(norm).double()
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
    x_wide = x.detach().double().requires_grad_()
    out, expected = norm(x), reference(wide, x_wide)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    out.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(x.grad.double(), x_wide.grad, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(norm.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("last", "shape"), [each for each in SHAPES if len(each[1]) > 1])
@pytest.mark.parametrize("affine", [True, False])
def test_the_spec_computes_the_same(last, shape, affine):
    norm = random(3, channels_last=last, affine=affine)
    x = torch.randn(shape)
    parameters = {name: each.double() for name, each in norm.named_parameters()}
    torch.testing.assert_close(norm(x).double(), norm.spec.reference(x.double(), parameters), rtol=1e-5, atol=1e-6)
    assert norm.spec.formula == ("y = γ_c · tanh(α·x) + β_c" if affine else "y = tanh(α·x)")


def test_parameters_are_those_of_the_papers_code():
    norm = DynamicTanh(3)
    assert {name: each.tolist() for name, each in norm.state_dict().items()} == {
        "alpha": [0.5],
        "weight": [1.0, 1.0, 1.0],
        "bias": [0.0, 0.0, 0.0],
    }
    norm = random(3, alpha=0.8)
    norm.reset_parameters()
    torch.testing.assert_close(norm(torch.ones(1, 3)), torch.full((1, 3), 0.8).tanh())


@pytest.mark.parametrize("last", [True, False])
def test_gradcheck(last):
    norm = random(3, channels_last=last).double()
    x = torch.randn((2, 4, 3) if last else (2, 3, 4), dtype=torch.float64, requires_grad=True)

    def layer(x, *parameters):
        given = dict(zip(("alpha", "weight", "bias"), parameters, strict=True))
        return torch.func.functional_call(norm, given, (x,))

    assert torch.autograd.gradcheck(layer, (x, *norm.parameters()))
    assert torch.autograd.gradgradcheck(layer, (x, *norm.parameters()))


@pytest.mark.parametrize("size", [1e30, 3e38, 1e-30])
def test_huge_and_tiny_inputs_against_float64(size):
    norm = random(4, alpha=0.5)
    with torch.no_grad():
        norm.alpha.fill_(3.0)
    x = (torch.randn(3, 4).clamp(-1, 1) * size).requires_grad_()
    out = norm(x)
    torch.testing.assert_close(out.double(), reference(norm, x.detach()), rtol=1e-5, atol=1e-6)
    out.sum().backward()
    assert all(each.grad.isfinite().all() for each in (x, *norm.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["half", "float"])
def test_halves_are_computed_in_float32(dtype, weights):
    norm = random(3)
    norm = norm.to(dtype) if weights == "half" else norm
    x = torch.randn(5, 3).to(dtype)
    out = norm(x)
    assert out.dtype == dtype
    assert torch.equal(out, copy.deepcopy(norm).float()(x.float()).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == dtype
        assert norm(x.float()).dtype == torch.float32


@pytest.mark.parametrize(("last", "shape"), [(True, (0, 3)), (False, (0, 3, 4)), (False, (2, 3, 0))])
def test_an_empty_batch_gives_gradients_of_zero(last, shape):
    norm = DynamicTanh(3, channels_last=last)
    x = torch.empty(shape, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.shape == shape
    assert all(torch.equal(each.grad, torch.zeros_like(each)) for each in norm.parameters())


def test_what_it_refuses():
    for alpha in (0.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="finite and not 0"):
            DynamicTanh(3, alpha)
    with pytest.raises(InputError, match=r"DynamicTanh\(4\)"):
        DynamicTanh(3)(torch.randn(2, 4))
    with pytest.raises(InputError, match="3 channels on axis 1"):
        DynamicTanh(3, channels_last=False)(torch.randn(2, 4, 3))
    with pytest.raises(InputError, match="unsqueeze"):
        DynamicTanh(3, channels_last=False)(torch.randn(3))
    for last in (True, False):
        with pytest.raises(InputError, match="floating"):
            DynamicTanh(3, channels_last=last)(torch.ones(2, 3, dtype=torch.int64))


def test_make_puts_the_channels_where_the_input_has_them():
    assert make("dynamic-tanh", 6, dims=0).channels_last
    x = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(make("dynamic-tanh", 6, dims=2, alpha=0.7)(x), torch.tanh(0.7 * x))


def test_copies_checkpoints_layout_meta_and_vmap():
    norm, other = random(4, channels_last=False), DynamicTanh(4, channels_last=False)
    assert isinstance(norm, Telemetry)
    buffer = io.BytesIO()
    torch.save(norm.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer), strict=True)
    x = torch.randn(2, 4, 5, 5)
    last = x.to(memory_format=torch.channels_last)
    for copied in (other, copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(copied(x), norm(x))
    assert norm.telemetry() == {}
    assert norm(last).stride() == last.stride()
    assert torch.equal(norm(last), norm(x))
    assert DynamicTanh(4, device="meta")(torch.empty(2, 4, device="meta")).shape == (2, 4)
    assert torch.equal(torch.vmap(norm)(x.unsqueeze(1)), norm(x).unsqueeze(1))


@pytest.mark.parametrize("last", [False, True])
def test_the_same_bits_for_any_number_of_threads(last):
    x, norm = torch.randn(3, 5, 211, 173), DynamicTanh(5, channels_last=False)
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = norm(x)
            found.append([y, *torch.autograd.grad(y, [x, *norm.parameters()], y.detach() + 1)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for each in found[1:] for one, two in zip(found[0], each, strict=True))


@pytest.mark.slow
def test_compiles_whole():
    # In a process of its own: the shape checks of the tests cannot be traced.
    script = """
import torch
from holdfast.norms.dynamic_tanh import DynamicTanh
x = torch.randn(12, 8)
for last in (True, False):
    norm = DynamicTanh(8, channels_last=last)
    torch.testing.assert_close(torch.compile(norm, fullgraph=True, backend="aot_eager")(x), norm(x))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
