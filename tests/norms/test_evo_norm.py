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
from holdfast.norms.evo_norm import EvoNormB0, EvoNormS0, _sigmoid
from holdfast.norms.make import make
from holdfast.norms.running import accumulate

KINDS = {"b0": lambda **s: EvoNormB0(4, **s), "s0": lambda **s: EvoNormS0(4, groups=2, **s)}
SHAPES = [(5, 4), (3, 4, 6), (3, 4, 2, 5), (2, 4, 2, 2, 3)]


def random(kind, **settings):
    norm = KINDS[kind](**settings)
    for each in norm.parameters():
        nn.init.normal_(each)
    return norm


def reference(norm, x, named, variance=None):
    """The paper's formulas in float64."""
    wide = x.double()
    shape = (1, -1) + (1,) * (x.ndim - 2)
    gain, level, v = (named[name].double().view(shape) for name in ("weight", "bias", "v"))
    cells = wide.flatten(2) if x.ndim > 2 else wide.unsqueeze(-1)
    if isinstance(norm, EvoNormS0):
        grouped = cells.reshape(len(x), norm.groups, -1)
        deviation = (grouped.var(2, correction=0) + norm.eps).sqrt().repeat_interleave(4 // norm.groups, 1)
        return gain * wide * torch.sigmoid(v * wide) / deviation.view(len(x), *shape[1:]) + level
    variance = cells.transpose(0, 1).flatten(1).var(1, correction=0) if variance is None else variance.double()
    own = (cells.var(2, correction=0) + norm.eps).sqrt().view(len(x), 4, *shape[2:])
    return gain * wide / torch.maximum((variance.view(shape) + norm.eps).sqrt(), v * wide + own) + level


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_formula_forward_and_backward(kind, shape):
    norm = random(kind)
    named = {name: each.detach().double().requires_grad_() for name, each in norm.named_parameters()}
    x, dy = (torch.randn(shape) * 3 + 0.5).requires_grad_(), torch.randn(shape)
    wide = x.detach().double().requires_grad_()
    out, expected = norm(x), reference(norm, wide, named)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    out.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-4, atol=1e-5)
    for name, each in norm.named_parameters():
        torch.testing.assert_close(each.grad.double(), named[name].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_the_spec_computes_the_same(kind, shape, training):
    norm = random(kind).train(training)
    running = None
    if kind == "b0":
        norm.running_var.uniform_(0.5, 3.0)
        running = None if training else (norm.running_mean.double(), norm.running_var.double())
    x = torch.randn(shape)
    parameters = {name: each.double() for name, each in norm.named_parameters()}
    expected = norm.spec.reference(x.double(), parameters, norm.eps, running)
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_formulas():
    assert EvoNormB0(4).spec.formula == "y = γ_c · x / max(√(σ²_c + ε), v_c·x + √(σ²_nc + ε)) + β_c"
    assert EvoNormS0(4, groups=2).spec.formula == "y = γ_c · x·sigmoid(v_c·x) / √(σ²_ng + ε) + β_c"


def test_running_statistics_are_batch_norms():
    ours, theirs = EvoNormB0(4), nn.BatchNorm2d(4)
    for _ in range(3):
        x = torch.randn(5, 4, 3, 2) * 2 + 1
        ours(x)
        theirs(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    before = copy.deepcopy(ours.state_dict())
    out = ours.eval()(x)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    named = dict(ours.named_parameters())
    torch.testing.assert_close(out.double(), reference(ours, x, named, ours.running_var), rtol=1e-5, atol=1e-5)


def test_running_statistics_are_pooled_over_micro_batches():
    pooled, whole, x = EvoNormB0(4, momentum=1.0), EvoNormB0(4, momentum=1.0), torch.randn(8, 4, 3) * 2 + 1
    optimizer = torch.optim.SGD(pooled.parameters(), lr=0.1)
    with accumulate(pooled, optimizer):
        for part in x.split(2):
            pooled(part).sum().backward()
        optimizer.step()
    whole(x)
    torch.testing.assert_close(pooled.running_var, whole.running_var)


def test_without_running_statistics_evaluation_takes_the_batchs():
    norm, x = EvoNormB0(4, track_running_stats=False), torch.randn(5, 4, 3)
    assert torch.equal(norm(x), norm.eval()(x))
    assert [name for name, _ in norm.named_buffers()] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(kind, training):
    norm = random(kind).double().train(training)
    x = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in norm.named_parameters()]

    def layer(x, *parameters):
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(layer, (x, *norm.parameters()))
    assert torch.autograd.gradgradcheck(layer, (x, *norm.parameters()), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_inputs_against_float64(kind):
    norm = random(kind)
    named = {name: each.detach().double() for name, each in norm.named_parameters()}
    x = (torch.randn(3, 4, 5) * 1e30).requires_grad_()
    wide = x.detach().double().requires_grad_()
    out, expected, dy = norm(x), reference(norm, wide, named), torch.randn(x.shape)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    out.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(x.grad.double() * 1e30, wide.grad * 1e30, rtol=1e-4, atol=1e-4)


def test_the_sigmoid_is_torchs_with_its_first_two_derivatives():
    x = torch.cat([torch.linspace(-90, 90, 999), torch.tensor([0.0, 1e30, -1e30])]).requires_grad_()
    wide = x.detach().double().requires_grad_()
    ours, theirs = _sigmoid(x), torch.sigmoid(wide)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=0)
    for _ in range(3):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-8)
        (ours,), (theirs,) = (
            torch.autograd.grad(y.sum(), at, create_graph=True) for y, at in ((ours, x), (theirs, wide))
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", [torch.full((4, 4, 3), 7.0), torch.zeros(4, 4, 3)], ids=["constant", "zero"])
def test_constant_inputs_against_float64(kind, data):
    norm = random(kind)
    x = data.clone().requires_grad_()
    out = norm(x)
    torch.testing.assert_close(out.double(), reference(norm, x, dict(norm.named_parameters())), rtol=1e-5, atol=1e-5)
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["half", "float"])
def test_halves_are_computed_in_float32(kind, dtype, weights):
    norm = random(kind)
    norm = norm.to(dtype) if weights == "half" else norm
    x = torch.randn(5, 4, 3).to(dtype)
    out = norm(x)
    assert out.dtype == dtype
    assert torch.equal(out, copy.deepcopy(norm).float()(x.float()).to(dtype))
    assert all(each.dtype == torch.float32 for each in norm.buffers() if each.is_floating_point())
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x.float()).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), (2, 4, 0)])
def test_an_empty_batch_gives_gradients_of_zero(kind, shape):
    norm = KINDS[kind]()
    before = copy.deepcopy(norm.state_dict())
    x = torch.empty(shape, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad.shape == shape
    assert torch.equal(norm.weight.grad, torch.zeros(4))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_what_they_refuse():
    for kind in KINDS:
        norm = KINDS[kind]()
        with pytest.raises(InputError, match="unsqueeze"):
            norm(torch.randn(4))
        with pytest.raises(InputError, match="4 channels on axis 1"):
            norm(torch.randn(2, 5, 3))
        with pytest.raises(InputError, match="floating"):
            norm(torch.ones(2, 4, dtype=torch.int64))
        with pytest.raises(InputError, match="eps of 0 or more"):
            KINDS[kind](eps=-1.0)
    with pytest.raises(InputError, match="momentum in"):
        EvoNormB0(4, momentum=1.5)
    for groups in (0, 3, 32):
        with pytest.raises(InputError, match=r"type: EvoNormS0\(4, groups=[14]\)"):
            EvoNormS0(4, groups=groups)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        EvoNormB0(4)(torch.randn(1, 4, 1))
    assert EvoNormB0(4).eval()(torch.randn(1, 4, 1)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_telemetry_and_copies(kind):
    norm, x = random(kind), torch.randn(3, 4, 5)
    assert isinstance(norm, Telemetry)
    assert norm.telemetry() == {}
    norm(x)
    wide = x.double()
    cells = wide.transpose(0, 1).reshape(1, 4, -1) if kind == "b0" else wide.reshape(3, 2, -1)
    torch.testing.assert_close(norm.telemetry()["mean"].double(), cells.mean(2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.telemetry()["variance"].double(), cells.var(2, correction=0), rtol=1e-5, atol=0)
    for copied in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert copied.telemetry() == {}
        assert torch.equal(copied(x), norm(x))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_layout_meta_and_vmap(kind):
    norm, other = random(kind), make(f"evo-{kind}", 4, 2, **({"groups": 2} if kind == "s0" else {}))
    buffer = io.BytesIO()
    torch.save(norm.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer), strict=True)
    x = torch.randn(2, 4, 5, 5)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(other(x), norm(x))
    assert norm(last).stride() == last.stride()
    torch.testing.assert_close(norm(last), norm(x))
    norm.eval()
    torch.testing.assert_close(torch.vmap(norm)(x.unsqueeze(1)), norm(x).unsqueeze(1))
    assert KINDS[kind](device="meta")(torch.empty(2, 4, 3, device="meta")).shape == (2, 4, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [False, True])
def test_the_same_bits_for_any_number_of_threads(kind, last):
    x, norm = torch.randn(3, 4, 211, 173), random(kind)
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
import copy, torch
from holdfast.norms.evo_norm import EvoNormB0, EvoNormS0
x = torch.randn(12, 8, 5)
for norm in (EvoNormB0(8), EvoNormS0(8, groups=2)):
    eager = copy.deepcopy(norm)
    torch.testing.assert_close(torch.compile(norm, fullgraph=True, backend="aot_eager")(x), eager(x))
    torch.testing.assert_close(dict(norm.state_dict()), dict(eager.state_dict()))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
