import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from holdfast.core.errors import InputError
from holdfast.norms import make, reference_pass
from holdfast.norms.virtual_batch_norm import VirtualBatchNorm

SHAPES = [(), (5,), (3, 4), (2, 3, 2)]


def shaken(**settings):
    norm = VirtualBatchNorm(3, **settings)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def formula(norm, reference, x):
    """Each sample by the statistics of the reference and itself, laid side by side, in float64."""
    out = []
    for sample in x.double():
        cells = torch.cat([reference.double().transpose(0, 1).flatten(1), sample.reshape(len(sample), -1)], 1)
        shape = (-1,) + (1,) * (sample.ndim - 1)
        mean, variance = cells.mean(1).view(shape), cells.var(1, correction=0).view(shape)
        y = (sample - mean) / (variance + norm.eps).sqrt()
        out.append(y * norm.weight.double().view(shape) + norm.bias.double().view(shape))
    return torch.stack(out)


@pytest.mark.parametrize("positions", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_each_sample_meets_the_reference_and_itself(positions, training):
    norm, reference, x = shaken().train(training), torch.randn(7, 3, *positions) * 2 + 4, torch.randn(4, 3, *positions)
    norm.refer(reference)
    torch.testing.assert_close(norm(x).double(), formula(norm, reference, x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1], rtol=1e-6, atol=1e-6)


def test_samples_of_another_size_weigh_by_their_positions():
    norm, reference, x = shaken(), torch.randn(7, 3, 4, 4), torch.randn(2, 3, 6, 5) + 1
    norm.refer(reference)
    torch.testing.assert_close(norm(x).double(), formula(norm, reference, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", SHAPES)
def test_the_reference_is_normalised_by_itself(positions):
    norm, reference = shaken(), torch.randn(7, 3, *positions) * 2 + 4
    own = nn.functional.batch_norm(reference, None, None, norm.weight, norm.bias, training=True)
    torch.testing.assert_close(norm.refer(reference), own)
    assert norm.reference_count == 7 * torch.Size(positions).numel()
    torch.testing.assert_close(norm.reference_var, reference.transpose(0, 1).flatten(1).var(1, correction=0))


def test_the_first_training_batch_is_the_reference_and_stays():
    norm, first = shaken(), torch.randn(6, 3)
    torch.testing.assert_close(norm(first).double(), formula(norm, first, first), rtol=1e-5, atol=1e-5)
    before, x = copy.deepcopy(norm.state_dict()), torch.randn(5, 3) * 9
    torch.testing.assert_close(norm(x).double(), formula(norm, first, x), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(each, before[name]) for name, each in norm.state_dict().items())
    norm.refer(x)
    assert not torch.equal(norm.reference_mean, before["reference_mean"])


def test_far_from_zero_nothing_is_lost():
    norm, reference, x = shaken(), torch.randn(64, 3, 9) + 2000, torch.randn(8, 3, 9) + 2000
    norm.refer(reference)
    # A float32 tells values of 2000 apart by 1e-4.
    torch.testing.assert_close(norm(x).double(), formula(norm, reference, x), rtol=1e-3, atol=5e-4)


def network():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), shaken(), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.Sequential(shaken()), nn.Flatten()
    )


@pytest.mark.parametrize("training", [True, False])
def test_one_forward_of_the_reference_sets_every_layer(training):
    model, reference, x = network().train(training), torch.randn(8, 1, 6, 6), torch.randn(2, 1, 6, 6)
    with reference_pass(model):
        out = model(reference)
    assert not out.requires_grad
    inner = model[1]
    torch.testing.assert_close(inner.reference_mean, model[0](reference).mean((0, 2, 3)))
    deep = model[3](
        torch.relu(nn.functional.batch_norm(model[0](reference), None, None, inner.weight, inner.bias, True))
    )
    torch.testing.assert_close(model[4][0].reference_mean, deep.mean((0, 2, 3)))
    before = model(x)
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[0].bias.mul_(2)
    assert not torch.allclose(model(x), before, atol=1e-2)
    with reference_pass(model):
        model(reference)
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-3)  # blind to the weights' length, but for ε


def test_the_pass_ends_with_an_error_too():
    model = network()
    with pytest.raises(RuntimeError), reference_pass(model):
        model(torch.randn(8, 2, 6, 6))
    with pytest.raises(InputError, match="a reference batch"):
        model.eval()(torch.randn(8, 1, 6, 6))
    with pytest.raises(InputError, match="a model with a VirtualBatchNorm"), reference_pass(nn.Linear(1, 1)):
        pass


@pytest.mark.parametrize("gradient", [False, True])
def test_the_gradient_passes_through_the_reference_only_if_asked(gradient):
    model, reference, x = (
        nn.Sequential(nn.Linear(2, 3), shaken()).double(),
        torch.randn(4, 2).double(),
        torch.randn(3, 2),
    )
    x = x.double()
    with reference_pass(model, gradient=gradient):
        model(reference)
    model(x).square().sum().backward()
    linear, norm = model
    weight = linear.weight.detach().clone().requires_grad_()
    hidden, fixed = x @ weight.T + linear.bias.detach(), reference @ weight.T + linear.bias.detach()
    loss = formula(norm, fixed if gradient else fixed.detach(), hidden).square().sum()
    torch.testing.assert_close(linear.weight.grad, torch.autograd.grad(loss, weight)[0])


@pytest.mark.parametrize("positions", [(), (3,)])
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training, positions):
    norm = shaken().double()
    norm.refer(torch.randn(5, 3, *positions, dtype=torch.float64))
    x = torch.randn(2, 3, *positions, dtype=torch.float64, requires_grad=True)
    norm.train(training)
    assert torch.autograd.gradcheck(lambda x, *_: norm(x), (x, *norm.parameters()))
    assert torch.autograd.gradgradcheck(lambda x, *_: norm(x), (x, *norm.parameters()))


def test_gradcheck_through_the_reference():
    norm = shaken().double()
    x, reference = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def call(x, reference):
        with reference_pass(norm, gradient=True):
            norm(reference)
        return norm(x)

    assert torch.autograd.gradcheck(call, (x, reference))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_halves_are_computed_in_float32(dtype, training):
    norm = shaken().to(dtype)
    assert norm.reference_var.dtype == VirtualBatchNorm(3, dtype=dtype).reference_mean.dtype == torch.float32
    wide, x = copy.deepcopy(norm).float(), torch.randn(6, 3, 4).to(dtype)
    assert norm.refer(x).dtype == dtype
    wide.refer(x.float())
    y = norm.train(training)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, wide.train(training)(x.float()).to(dtype), rtol=0, atol=0)
    norm.half()
    assert torch.equal(norm.reference_mean, wide.reference_mean)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0)])
def test_an_empty_batch_leaves_everything_alone(shape):
    norm, x = shaken(), torch.empty(shape, requires_grad=True)
    before = copy.deepcopy(norm.state_dict())
    y = norm(x)
    y.sum().backward()
    assert y.shape == shape
    assert torch.equal(norm.weight.grad, torch.zeros(3))
    assert torch.equal(norm.bias.grad, torch.zeros(3))
    assert all(torch.equal(each, before[name]) for name, each in norm.state_dict().items())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda norm: norm.eval()(torch.randn(4, 3)), "a reference batch"),
        (lambda norm: norm(torch.randn(4, 2)), r"3 channels.*VirtualBatchNorm\(2\)"),
        (lambda norm: norm(torch.randn(3)), "at least 2 axes"),
        (lambda norm: norm(torch.ones(4, 3, dtype=torch.long)), "a floating input"),
        (lambda norm: norm(torch.randn(1, 3)), "more than 1 value per channel"),
        (lambda norm: norm.refer(torch.randn(1, 3)), "more than 1 value per channel"),
        (lambda norm: norm.refer(torch.randn(0, 3)), "more than 1 value per channel"),
        (lambda norm: norm.refer(torch.randn(4, 5)), "3 channels"),
        (lambda norm: VirtualBatchNorm(0), "1 channel"),
        (lambda norm: VirtualBatchNorm(3, eps=-1.0), "eps"),
    ],
)
def test_bad_inputs(call, match):
    norm = shaken()
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(InputError, match=match):
        call(norm)
    assert all(torch.equal(each, before[name]) for name, each in norm.state_dict().items())


@pytest.mark.parametrize("gradient", [False, True])
def test_copies_and_checkpoints_take_the_reference_along(gradient):
    norm, x = shaken(), torch.randn(4, 3)
    with reference_pass(norm, gradient=gradient):
        norm(torch.randn(6, 3, requires_grad=True))
    want = norm(x).detach()
    fresh = shaken()
    fresh.load_state_dict(norm.state_dict(), strict=True)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm)), fresh):
        assert other.telemetry() == {}
        assert torch.equal(other.eval()(x), want)
    fresh.load_state_dict(shaken().state_dict())
    with pytest.raises(InputError, match="a reference batch"):
        fresh(x)
    assert set(norm.state_dict()) == {"weight", "bias", "reference_mean", "reference_var", "reference_count"}
    assert list(VirtualBatchNorm(3, affine=False).parameters()) == []


def test_activation_checkpointing_of_the_first_batch_gives_the_same_gradients():
    norm, x = shaken(), torch.randn(6, 3, 2)
    plain, gradients = copy.deepcopy(norm), []
    for layer in (norm, plain):
        given = x.clone().requires_grad_()
        out = checkpoint(layer, given, use_reentrant=False) if layer is norm else layer(given)
        gradients.append(torch.autograd.grad(out.square().sum(), [given, *layer.parameters()]))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    torch.testing.assert_close(dict(norm.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)


def test_telemetry_is_one_value_a_sample_and_channel():
    norm, x = shaken(), torch.randn(4, 3, 5)
    norm.refer(x * 3)
    norm(x)
    cells = torch.cat([(x * 3).transpose(0, 1).flatten(1).expand(4, 3, -1), x], 2)
    torch.testing.assert_close(norm.telemetry()["mean"], cells.mean(2))
    torch.testing.assert_close(norm.telemetry()["variance"], cells.var(2, correction=0))


def test_layout_and_the_specification():
    norm = make("virtual-batch", 4, dims=2)
    x = torch.randn(9, 4, 5, 5).to(memory_format=torch.channels_last)
    assert norm(x).stride() == norm.refer(x).stride() == x.stride()
    assert norm.spec.formula == "y = γ_c · (x − μ_nc) / √(σ²_nc + ε) + β_c"


def test_reset_as_the_constructor_left_it():
    norm, fresh = shaken(), VirtualBatchNorm(3)
    norm(torch.randn(6, 3))
    norm.reset_parameters()
    torch.testing.assert_close(dict(norm.state_dict()), dict(fresh.state_dict()), rtol=0, atol=0)


@pytest.mark.slow
def test_compiles_whole():
    # In a process of its own: the shape checks of the tests cannot be traced.
    script = """
import copy, torch
from holdfast.norms.virtual_batch_norm import VirtualBatchNorm
norm, x = VirtualBatchNorm(4), torch.randn(6, 4, 3)
eager = copy.deepcopy(norm)
compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
for given in (x, x * 2):
    torch.testing.assert_close(compiled(given), eager(given))
norm.eval(), eager.eval()
torch.testing.assert_close(compiled(x), eager(x))
torch.testing.assert_close(dict(norm.state_dict()), dict(eager.state_dict()))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
