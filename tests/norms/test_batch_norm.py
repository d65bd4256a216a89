import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from holdfast.norms import BatchNorm1d, BatchNorm2d, BatchNorm3d


@pytest.mark.parametrize("ours", [BatchNorm1d, BatchNorm2d, BatchNorm3d])
def test_it_is_torchs_class(ours):
    theirs = getattr(nn, ours.__name__)
    assert issubclass(ours, theirs)
    assert repr(ours(3)) == repr(theirs(3))
    assert ours.__doc__.startswith("BatchNorm over")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_evaluation_with_buffers_that_somebody_has_narrowed(dtype):
    norm = BatchNorm2d(3).eval()
    norm.running_mean, norm.running_var = torch.randn(3).to(dtype), torch.rand(3).to(dtype) + 1
    wide = nn.BatchNorm2d(3).eval()
    wide.running_mean, wide.running_var = norm.running_mean.float(), norm.running_var.float()
    x = torch.randn(2, 3, 4, 4).to(dtype)
    torch.testing.assert_close(norm(x), wide(x.float()).to(dtype), rtol=0, atol=0)


def test_the_sums_of_the_gradient_begin_after_the_first_reading(monkeypatch):
    norm, x = BatchNorm2d(3), torch.randn(4, 3, 5, 5)
    dy = torch.randn_like(x)
    for kernels in ("auto", "compiled"):
        monkeypatch.setenv("HOLDFAST_KERNELS", kernels)
        norm.telemetry()
        norm.zero_grad()
        norm(x).backward(dy)
        found = norm.telemetry()
        torch.testing.assert_close(found["gradient_sum"].float().flatten(), dy.sum((0, 2, 3)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["gradient_sum"].float().flatten(), norm.bias.grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["gradient_product"].float().flatten(), norm.weight.grad, rtol=1e-5, atol=1e-5)
    fresh = BatchNorm2d(3)
    monkeypatch.setenv("HOLDFAST_KERNELS", "auto")
    fresh(x).backward(dy)
    assert sorted(fresh.telemetry()) == ["mean", "variance"]


def test_parametrised_gains_are_used():
    norm = BatchNorm2d(3)
    parametrize.register_parametrization(norm, "weight", nn.Softplus())
    x = torch.randn(4, 3, 5, 5)
    plain = nn.BatchNorm2d(3)
    plain.weight.data = norm.weight.detach().clone()
    torch.testing.assert_close(norm(x), plain(x))
