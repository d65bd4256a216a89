import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from holdfast.core.errors import InputError
from holdfast.norms import BatchNorm2d, BatchRenorm

OPEN = {"r_max": 1e6, "d_max": 1e6, "warm_up": (0, 0, 0)}


def moved(norm):
    norm.running_mean.copy_(torch.tensor([1.0, -2.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    return norm


@pytest.mark.parametrize("kernels", ["auto", "compiled"])
def test_the_formula(monkeypatch, kernels):
    monkeypatch.setenv("HOLDFAST_KERNELS", kernels)
    norm = moved(BatchRenorm(2, r_max=1.5, d_max=0.3, warm_up=(0, 0, 0)))
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(6, 2, 4) * 3 + 2
    wide = x.double()
    mean, sd = wide.mean((0, 2)), (wide.var((0, 2), correction=0) + 1e-5).sqrt()
    running = (norm.running_var.double() + 1e-5).sqrt()
    r = (sd / running).clamp(1 / 1.5, 1.5).view(1, 2, 1)
    d = ((mean - norm.running_mean.double()) / running).clamp(-0.3, 0.3).view(1, 2, 1)
    hat = (wide - mean.view(1, 2, 1)) / sd.view(1, 2, 1) * r + d
    expected = hat * norm.weight.double().view(1, 2, 1) + norm.bias.double().view(1, 2, 1)
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_no_gradient_passes_through_the_corrections():
    norm = moved(BatchRenorm(2, affine=False, **OPEN).double())
    norm.running_mean, norm.running_var = norm.running_mean.double(), norm.running_var.double()
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(6, 2, dtype=torch.float64)
    wide = x.detach()
    r = (wide.var(0, correction=0) + 1e-5).sqrt() / (norm.running_var + 1e-5).sqrt()
    (through,) = torch.autograd.grad(norm(x), x, dy)
    plain = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() * r
    (expected,) = torch.autograd.grad(plain, x, dy)
    torch.testing.assert_close(through, expected)


def test_the_clips_open_in_straight_lines():
    norm = BatchRenorm(2, r_max=3.0, d_max=5.0, warm_up=(10, 30, 20))
    found = []
    for seen in (0, 10, 15, 20, 25, 30, 99):
        norm.num_batches_tracked.fill_(seen)
        found.append(norm.clips())
    assert found == [(1.0, 0.0), (1.0, 0.0), (1.5, 2.5), (2.0, 5.0), (2.5, 5.0), (3.0, 5.0), (3.0, 5.0)]


def test_before_the_warm_up_it_is_batch_norm():
    ours, theirs = BatchRenorm(3, momentum=0.1), BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"r_max": 0.5}, "r_max of 1 or more"),
        ({"d_max": -1.0}, "d_max of 0 or more"),
        ({"warm_up": (5, 4, 9)}, r"got \(5, 4, 9\)"),
        ({"track_running_stats": False}, "expected running statistics"),
    ],
)
def test_settings_that_are_none_are_refused(settings, text):
    with pytest.raises(InputError, match=text):
        BatchRenorm(2, **settings)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kernels", ["auto", "compiled"])
def test_checkpointing_corrects_as_the_first_time(monkeypatch, reentrant, kernels):
    monkeypatch.setenv("HOLDFAST_KERNELS", kernels)
    torch.manual_seed(0)
    norm = BatchRenorm(3, warm_up=(0, 0, 0), momentum=0.5)
    plain = copy.deepcopy(norm)
    parts = [torch.randn(16, 3) * 2 + 1 + k for k in range(2)]
    found = []
    for layer in (norm, plain):
        inputs = [each.clone().requires_grad_() for each in parts]
        outputs = [
            checkpoint(layer, each, use_reentrant=reentrant) if layer is norm else layer(each) for each in inputs
        ]
        sum(each.square().sum() for each in outputs).backward()  # both passes are done again, the last one first
        found.append([*(each.grad for each in inputs), *(each.grad for each in layer.parameters())])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)
