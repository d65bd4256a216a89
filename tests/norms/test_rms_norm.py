import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from holdfast.core.protocols import Telemetry
from holdfast.norms.rms_norm import RMSNorm


def reference(x, shape, weight=None, eps=None):
    """The paper's formula in float64."""
    wide = x.double()
    axes = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype if x.dtype == torch.float64 else torch.float32).eps if eps is None else eps
    out = wide / (wide.pow(2).mean(axes, keepdim=True) + eps).sqrt()
    return out if weight is None else out * weight.double()


def pair(*args, **kwargs):
    torch.manual_seed(0)
    theirs = nn.RMSNorm(*args, **kwargs)
    ours = RMSNorm(*args, **kwargs)
    if theirs.weight is not None:
        nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.mark.parametrize("shape", [(16,), (3, 16), 16])
@pytest.mark.parametrize("eps", [None, 1e-5, 0.1])
@pytest.mark.parametrize("affine", [True, False])
def test_equals_torch_forward_and_backward(shape, eps, affine):
    theirs, ours = pair(shape, eps, affine)
    x = torch.randn(5, 3, 16)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [theirs(inputs[0]), ours(inputs[1])]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-6, atol=1e-6)
    weights = torch.randn_like(x)
    for out in outputs:
        (out * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-5, atol=1e-6)
    if affine:
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, None])
def test_types_are_torchs(dtype, weight_dtype):
    theirs, ours = pair(16)
    theirs, ours = (each.to(weight_dtype or dtype) for each in (theirs, ours))
    x = torch.randn(5, 16).to(dtype)
    with torch.no_grad():
        expected = reference(x, (16,), ours.weight)
        out = ours(x)
        assert out.dtype == dtype == (theirs(x).dtype if weight_dtype is None else dtype)
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps * 2, atol=1e-7)


def test_output_under_autocast_has_the_inputs_type():
    ours = RMSNorm(8)
    with torch.autocast("cpu", torch.bfloat16):
        for x in (torch.randn(3, 8), torch.randn(3, 8).bfloat16()):
            assert ours(x).dtype == x.dtype  # as torch's, which warns when the weight's type differs


@pytest.mark.parametrize("eps", [None, 0.05])
def test_gradcheck(eps):
    norm = RMSNorm((2, 3), eps=eps).double()
    nn.init.normal_(norm.weight)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(norm, (x,))


@pytest.mark.parametrize(
    ("data", "eps"),
    [
        (torch.randn(6, 64) * 0.01 + 100, None),
        (torch.randn(6, 4) + 2000, None),
        (torch.randn(6, 8) * 1e30, None),
        (torch.randn(6, 8) * 1e-30, None),
        (torch.randn(6, 8) * 1e-30, 0.0),
        (torch.full((3, 5), 3e38), None),
        (torch.full((3, 5), 7.0), None),
        (torch.zeros(3, 5), None),
    ],
    ids=["offset", "far", "huge", "tiny", "tiny without eps", "greatest", "constant", "zero"],
)
def test_hard_inputs_against_float64(data, eps):
    norm = RMSNorm(data.shape[-1], eps=eps)
    torch.testing.assert_close(
        norm(data).detach().double(), reference(data, (data.shape[-1],), eps=eps), rtol=1e-6, atol=0
    )


def test_gradient_on_huge_inputs_is_finite_where_torchs_is_not_right():
    x = torch.full((1, 4), 1e30, requires_grad=True)
    RMSNorm(4)(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_nonfinite_values_spread_as_torchs(bad):
    x = torch.tensor([[bad, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
    torch.testing.assert_close(RMSNorm(4)(x), nn.RMSNorm(4)(x), equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("shape", "x"),
    [
        (4, torch.zeros(2, 3)),
        ((2, 4), torch.zeros(4)),
        ([], torch.zeros(4)),
    ],
)
def test_wrong_shapes_raise_torchs_own_error(shape, x):
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        nn.RMSNorm(shape)(x)
    with pytest.raises(type(theirs.value)) as ours:
        RMSNorm(shape)(x)
    assert str(ours.value) == str(theirs.value)


def test_integers_raise_torchs_own_error():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once a process that the weight's type differs
        with pytest.raises(NotImplementedError, match="rms_norm"):
            RMSNorm(4)(torch.ones(2, 4, dtype=torch.int64))


@pytest.mark.parametrize(("width", "rows"), [(4, 0), (0, 3)])
def test_empty_input_gives_empty_output_and_zero_gradient(width, rows):
    norm = RMSNorm(width)
    out = norm(torch.empty(rows, width, requires_grad=True))
    out.sum().backward()
    assert out.shape == (rows, width)
    assert torch.equal(norm.weight.grad, torch.zeros(width))


def test_telemetry_is_the_mean_square_of_the_last_training_pass():
    norm = RMSNorm((3, 4))
    assert isinstance(norm, Telemetry)
    assert norm.telemetry() == {}
    x = torch.randn(5, 2, 3, 4) * 10
    norm(x)
    kept = norm.telemetry()["mean_square"]
    assert kept.shape == (10,)
    assert not kept.requires_grad
    torch.testing.assert_close(kept.double(), x.double().square().mean((-1, -2)).flatten(), rtol=1e-6, atol=0)
    norm.eval()(torch.zeros(1, 3, 4))
    assert torch.equal(norm.telemetry()["mean_square"], kept)


def test_telemetry_does_not_travel():
    norm = RMSNorm(4)
    norm(torch.randn(2, 4))
    for copied in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert copied.telemetry() == {}
        assert torch.equal(copied.weight, norm.weight)
    assert list(norm.state_dict()) == ["weight"]


def test_checkpoints_load_both_ways():
    theirs, ours = pair(6)
    buffer = io.BytesIO()
    torch.save(ours.state_dict(), buffer)
    buffer.seek(0)
    nn.RMSNorm(6).load_state_dict(torch.load(buffer), strict=True)
    assert repr(ours) == repr(theirs)


def test_layout_meta_and_vmap():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert RMSNorm(5)(x).stride() == x.stride()
    assert RMSNorm(4, device="meta")(torch.empty(2, 4, device="meta")).shape == (2, 4)
    norm = RMSNorm(5)
    torch.testing.assert_close(torch.vmap(norm)(x), norm.eval()(x))
    assert norm.telemetry() == {}


@pytest.mark.slow
def test_compiles_whole():
    # In a process of its own: the shape checks of the tests cannot be traced.
    script = """
import torch
from holdfast.norms.rms_norm import RMSNorm
norm, x = RMSNorm(8), torch.randn(4, 8)
compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")(x)
torch.testing.assert_close(compiled, torch.nn.RMSNorm(8)(x), rtol=1e-6, atol=1e-6)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
