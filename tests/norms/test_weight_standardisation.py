import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from holdfast.core.errors import InputError
from holdfast.norms.weight_standardisation import (
    WeightStandardisation,
    remove_weight_standardisation,
    weight_standardise,
)

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, groups=2), (2, 6, 7)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3), (2, 6, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(6, 4, 2), (2, 6, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3), (2, 6, 4, 4)),
    "transposed groups": (lambda: nn.ConvTranspose1d(6, 4, 3, groups=2), (2, 6, 4)),
}


def fans(module, weight):
    """The weights that each output is a sum over, one list an output."""
    if not isinstance(module, nn.modules.conv._ConvTransposeNd):
        return list(weight)
    groups = weight.split(len(weight) // module.groups)
    return [group[:, j] for group in groups for j in range(weight.shape[1])]


@pytest.fixture(params=LAYERS)
def layer(request):
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape)


def test_against_the_formula(layer):
    module, _ = layer
    raw = module.weight.detach().double()
    weight_standardise(module, gain=True)
    gain = module.parametrizations.weight[0].gain
    nn.init.normal_(gain)
    ours = fans(module, module.weight)
    assert len(ours) == len(gain)
    for got, own, g in zip(ours, fans(module, raw), gain.double(), strict=True):
        expected = g * (own - own.mean()) / (own.var(correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_an_output_sees_its_own_weights_only(layer):
    module, x = layer
    weight_standardise(module, eps=0.0)
    y = module(x)
    with torch.no_grad():
        for each in fans(module, module.parametrizations.weight.original)[1:]:
            each.mul_(3.0).add_(0.5)  # to which standardised weights are blind
    torch.testing.assert_close(module(x), y, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        fans(module, module.parametrizations.weight.original)[1].normal_()
    changed = (module(x) - y).abs().transpose(0, 1).flatten(1).amax(1) > 1e-3
    assert changed.nonzero().flatten().tolist() == [1]


def test_it_is_undone_bit_for_bit(layer):
    module, x = layer
    before, parameter, y = copy.deepcopy(module.state_dict()), module.weight, module(x)
    kind = type(module)
    assert weight_standardise(module) is module
    assert module.parametrizations.weight.original is parameter
    assert not torch.allclose(module(x), y)
    assert remove_weight_standardisation(module) is module
    assert module.weight is parameter
    assert type(module) is kind
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(module(x), y)


@pytest.mark.parametrize("gain", [True, False])
def test_folded_it_computes_the_same(layer, gain):
    module, x = layer
    weight_standardise(module, gain=gain)
    if gain:
        nn.init.normal_(module.parametrizations.weight[0].gain)
    parameter, other, y = module.parametrizations.weight.original, copy.deepcopy(module), module(x)
    remove_weight_standardisation(module, fold=True)
    assert torch.equal(other(x), y)  # the copy is left alone
    parametrize.remove_parametrizations(other, "weight", leave_parametrized=True)
    for each in (module, other):
        assert torch.equal(each(x), y)
        assert sorted(each.state_dict()) == ["bias", "weight"]
    assert module.weight is parameter


def test_copies_and_checkpoints():
    def make():
        return weight_standardise(nn.Conv2d(3, 4, 3), gain=True)

    module, other, x = make(), make(), torch.randn(2, 3, 5, 5)
    nn.init.normal_(module.parametrizations.weight[0].gain)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer), strict=True)
    copied = copy.deepcopy(module)
    assert torch.equal(other(x), module(x))
    assert torch.equal(copied(x), module(x))
    with torch.no_grad():
        copied.parametrizations.weight[0].gain.zero_()
    assert not torch.equal(copied(x), module(x))
    own = module.parametrizations.weight[0]
    assert torch.equal(pickle.loads(pickle.dumps(own))(torch.ones(4, 3)), own(torch.ones(4, 3)))


def test_an_assigned_weight_is_what_is_stored():
    module, weight = weight_standardise(nn.Linear(3, 2)), torch.randn(2, 3)
    module.weight = weight
    assert torch.equal(module.parametrizations.weight.original, weight)


def test_an_optimiser_goes_on_and_the_gradient_keeps_mean_and_length():
    module = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    weight_standardise(module, eps=0.0)
    raw = module.parametrizations.weight.original
    mean, before = raw.detach().mean(1), raw.detach().clone()
    module(torch.randn(5, 8)).square().sum().backward()
    # Ŵ is blind to shifts and factors of W: its gradient is orthogonal to ones and to W.
    torch.testing.assert_close(raw.grad.sum(1), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close((raw.grad * before).sum(1), torch.zeros(4), rtol=0, atol=1e-3)
    optimizer.step()
    assert not torch.equal(raw, before)
    torch.testing.assert_close(raw.detach().mean(1), mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"transposed": True}, {"transposed": True, "groups": 2}])
def test_gradcheck(settings):
    own = WeightStandardisation(3 * settings.get("groups", 1), gain=True, **settings).double()
    weight = torch.randn((4, 3, 2) if settings else (3, 4, 2), dtype=torch.float64, requires_grad=True)

    def run(weight, gain):
        return torch.func.functional_call(own, {"gain": gain}, (weight,))

    assert torch.autograd.gradcheck(run, (weight, own.gain))
    assert torch.autograd.gradgradcheck(run, (weight, own.gain))


@pytest.mark.parametrize("size", [1e30, 1e-30, 1e-3])
def test_huge_and_tiny_weights_against_float64(size):
    weight = (torch.randn(4, 30) * size).requires_grad_()
    wide = weight.detach().double()
    expected = (wide - wide.mean(1, keepdim=True)) / (wide.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    out = WeightStandardisation(4)(weight)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-6)
    out.square().sum().backward()
    assert weight.grad.isfinite().all()


def test_constant_weights_become_zero():
    weight = torch.full((2, 5), 0.3, requires_grad=True)
    out = WeightStandardisation(2)(weight)
    torch.testing.assert_close(out, torch.zeros(2, 5), rtol=0, atol=1e-4)
    out.sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32(dtype):
    weight, own = torch.randn(4, 9).to(dtype), WeightStandardisation(4, gain=True)
    expected = own(weight.float()).to(dtype)
    assert torch.equal(own(weight), expected)
    assert torch.equal(own.to(dtype)(weight), expected)
    module = weight_standardise(nn.Linear(9, 4, dtype=dtype), gain=True)
    assert module(torch.randn(2, 9).to(dtype)).dtype == dtype
    assert {each.dtype for each in module.parameters()} == {dtype}


def test_an_empty_batch_gives_gradients_of_zero():
    module = weight_standardise(nn.Conv2d(3, 4, 3), gain=True)
    module(torch.empty(0, 3, 5, 5)).sum().backward()
    assert all(torch.equal(each.grad, torch.zeros_like(each)) for each in module.parameters())


def test_what_it_refuses():
    with pytest.raises(InputError, match=r"a linear layer or a convolution.*Sequential"):
        weight_standardise(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(InputError, match="lazy"):
        weight_standardise(nn.LazyLinear(3))
    with pytest.raises(InputError, match="more than 1 weight an output"):
        weight_standardise(nn.Conv2d(6, 6, 1, groups=6))
    module = nn.Linear(3, 3)
    before = module.weight
    with pytest.raises(InputError, match="eps of 0 or more"):
        weight_standardise(module, eps=-1.0)
    assert module.weight is before
    with pytest.raises(InputError, match="whose weight is standardised"):
        remove_weight_standardisation(module)
    weight_standardise(module)
    with pytest.raises(InputError, match="standardised already"):
        weight_standardise(module)
    nn.utils.parametrizations.spectral_norm(module)
    with pytest.raises(InputError, match="2 parametrisations"):
        remove_weight_standardisation(module)


def test_layout_meta_and_vmap():
    module = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    strides = module.weight.stride()
    assert weight_standardise(module).weight.stride() == strides
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    assert module(x).is_contiguous(memory_format=torch.channels_last)
    assert weight_standardise(nn.Linear(4, 3, device="meta"), gain=True).weight.is_meta
    own, weights = WeightStandardisation(3), torch.randn(5, 3, 4)
    torch.testing.assert_close(torch.vmap(own)(weights), torch.stack([own(each) for each in weights]))


@pytest.mark.slow
def test_compiles_whole():
    # In a process of its own: the shape checks of the tests cannot be traced.
    script = """
import torch
from torch import nn
from holdfast.norms.weight_standardisation import weight_standardise
for module, x in ((nn.Linear(8, 4), torch.randn(2, 8)), (nn.ConvTranspose1d(8, 4, 3, groups=2), torch.randn(2, 8, 5))):
    weight_standardise(module, gain=True)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
