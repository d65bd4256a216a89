import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.core.protocols import Telemetry
from holdfast.norms.make import make
from holdfast.norms.rms_norm import RMSNorm
from holdfast.norms.scale_norm import ScaleNorm


def reference(x, g, eps=1e-5, axis=-1):
    """The paper's formula in float64."""
    wide = x.double()
    length = wide.pow(2).sum(axis, keepdim=True).sqrt()
    return g.double() * wide / length.clamp(min=eps)


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (6,), (2, 2, 3, 6)])
def test_against_the_formula_forward_and_backward(shape):
    norm = ScaleNorm(6)
    x = (torch.randn(shape) * 3).requires_grad_()
    wide, g = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    out, expected, dy = norm(x), reference(wide, g), torch.randn(shape)
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)
    out.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.weight.grad.double(), g.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("last", "shape"), [(True, (4, 5, 3)), (True, (4, 3)), (False, (4, 3, 2, 5)), (False, (4, 3))])
def test_the_spec_computes_the_same(last, shape):
    norm = ScaleNorm(3, channels_last=last)
    x = torch.randn(shape)
    x[0] = 0.0
    parameters = {name: each.double() for name, each in norm.named_parameters()}
    torch.testing.assert_close(norm(x).double(), norm.spec.reference(x.double(), parameters), rtol=1e-6, atol=1e-6)
    assert norm.spec.formula == "y = γ · x / max(‖x‖_ns, ε)"


def test_it_starts_as_rms_norm_without_gains_and_ends_on_a_sphere():
    x = torch.randn(7, 16)
    torch.testing.assert_close(ScaleNorm(16)(x), RMSNorm(16, elementwise_affine=False)(x), rtol=1e-6, atol=1e-6)
    norm = ScaleNorm(16)
    with torch.no_grad():
        norm.weight.fill_(2.5)
    torch.testing.assert_close(norm(x).norm(dim=-1), torch.full((7,), 2.5))
    norm.reset_parameters()
    assert norm.weight.item() == 4.0


def test_short_vectors_are_divided_by_eps():
    norm = ScaleNorm(2, eps=0.5)
    x = torch.tensor([[0.1, 0.2], [0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    out = norm(x)
    torch.testing.assert_close(out / 2**0.5, torch.tensor([[0.2, 0.4], [0.0, 0.0], [0.6, 0.8]]))
    out.sum().backward()
    torch.testing.assert_close(x.grad[:2], torch.full((2, 2), 2 * 2**0.5))


@pytest.mark.parametrize("data", ["ordinary", "short", "zero"])
def test_gradcheck(data):
    norm = ScaleNorm(4, eps=0.01).double()
    x = torch.randn(3, 4, dtype=torch.float64) * {"ordinary": 1.0, "short": 1e-4, "zero": 0.0}[data]
    x.requires_grad_()
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(norm, (x,))


@pytest.mark.parametrize("size", [1e30, 1e-30, 1e-10, 1e-3, 3e38])
def test_huge_and_tiny_inputs_against_float64(size):
    norm = ScaleNorm(64, eps=1e-12)
    x = (torch.rand(5, 64) * size).requires_grad_()
    wide = x.detach().double().requires_grad_()
    out, expected = norm(x), reference(wide, norm.weight.detach(), norm.eps)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=0)
    dy = torch.randn(5, 64)
    out.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(x.grad.double() * size, wide.grad * size, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_in_its_vector(bad):
    x = torch.ones(2, 3)
    x[0, 1] = bad
    out = ScaleNorm(3)(x)
    assert not out[0].isfinite().all()
    torch.testing.assert_close(out[1], torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["half", "float"])
def test_halves_are_computed_in_float32(dtype, weights):
    norm = ScaleNorm(9)
    norm = norm.to(dtype) if weights == "half" else norm
    x = (torch.randn(5, 9) * 1e4).to(dtype)
    out = norm(x)
    assert out.dtype == dtype
    assert torch.equal(out, copy.deepcopy(norm).float()(x.float()).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == dtype
        assert norm(x.float()).dtype == torch.float32


@pytest.mark.parametrize(("last", "shape"), [(True, (0, 3)), (True, (0, 2, 3)), (False, (0, 3, 4)), (False, (2, 3, 0))])
def test_an_empty_batch_gives_gradients_of_zero(last, shape):
    norm = ScaleNorm(3, channels_last=last)
    x = torch.empty(shape, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.shape == shape
    assert torch.equal(norm.weight.grad, torch.zeros(1))


def test_what_it_refuses():
    with pytest.raises(InputError, match="1 feature or more"):
        ScaleNorm(0)
    for eps in (-1.0, float("nan")):
        with pytest.raises(InputError, match="eps of 0 or more"):
            ScaleNorm(3, eps=eps)
    with pytest.raises(InputError, match=r"ScaleNorm\(4\)"):
        ScaleNorm(3)(torch.randn(2, 4))
    with pytest.raises(InputError, match="3 channels on axis 1"):
        ScaleNorm(3, channels_last=False)(torch.randn(2, 4, 3))
    with pytest.raises(InputError, match="unsqueeze"):
        ScaleNorm(3, channels_last=False)(torch.randn(3))
    for last in (True, False):
        with pytest.raises(InputError, match="floating"):
            ScaleNorm(3, channels_last=last)(torch.ones(2, 3, dtype=torch.int64))


def test_make_puts_the_features_where_the_input_has_them():
    assert make("scale", 6, dims=0)(torch.randn(2, 6)).shape == (2, 6)
    x = torch.randn(2, 6, 3, 4)
    out = make("scale", 6, dims=2, eps=1e-3)(x)
    torch.testing.assert_close(out.norm(dim=1), torch.full((2, 3, 4), 6**0.5))


def test_telemetry_is_the_mean_square_of_the_last_training_pass():
    norm = ScaleNorm(2)
    assert isinstance(norm, Telemetry)
    assert norm.telemetry() == {}
    norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    torch.testing.assert_close(norm.telemetry()["mean_square"], torch.tensor([12.5, 2.0]))
    norm.eval()(torch.ones(1, 2))
    assert len(norm.telemetry()["mean_square"]) == 2
    for copied in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert copied.telemetry() == {}
        assert torch.equal(copied(torch.ones(1, 2)), norm(torch.ones(1, 2)))


def test_checkpoints_layout_meta_and_vmap():
    norm, other = ScaleNorm(4, channels_last=False), ScaleNorm(4, channels_last=False)
    with torch.no_grad():
        norm.weight.fill_(3.0)
    buffer = io.BytesIO()
    torch.save(norm.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer), strict=True)
    x = torch.randn(2, 4, 5, 5)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(other(x), norm(x))
    assert norm(last).stride() == last.stride()
    torch.testing.assert_close(norm(last), norm(x))
    assert ScaleNorm(4, device="meta")(torch.empty(2, 4, device="meta")).shape == (2, 4)
    torch.testing.assert_close(torch.vmap(norm)(x.unsqueeze(1)), norm(x).unsqueeze(1))


@pytest.mark.parametrize("last", [False, True])
def test_the_same_bits_for_any_number_of_threads(last):
    x, norm = torch.randn(3, 5, 211, 173), ScaleNorm(5, channels_last=False)
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
from holdfast.norms.scale_norm import ScaleNorm
x = torch.randn(12, 8)
for last in (True, False):
    norm = ScaleNorm(8, channels_last=last)
    torch.testing.assert_close(torch.compile(norm, fullgraph=True, backend="aot_eager")(x), norm(x))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
