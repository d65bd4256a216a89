import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.norms import SwitchableNorm


def test_the_formula():
    norm = SwitchableNorm(3).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 3, 5, 2, dtype=torch.float64) * 2 + 1
    axes = [(2, 3), (1, 2, 3), (0, 2, 3)]
    w, v = norm.mean_weight.softmax(0), norm.variance_weight.softmax(0)
    mean = sum(w[i] * x.mean(axes[i], keepdim=True) for i in range(3))
    variance = sum(v[i] * x.var(axes[i], correction=0, keepdim=True) for i in range(3))
    gain, level = (each.view(1, 3, 1, 1) for each in (norm.weight, norm.bias))
    torch.testing.assert_close(norm(x), gain * (x - mean) / (variance + 1e-5).sqrt() + level)


def test_the_shares_add_up():
    norm = SwitchableNorm(2)
    torch.nn.init.normal_(norm.mean_weight)
    shares = norm.shares()
    assert list(shares) == ["instance", "layer", "batch"]
    for column in range(2):
        assert sum(each[column] for each in shares.values()) == pytest.approx(1.0)
    assert shares["batch"][1] == pytest.approx(1 / 3)


def test_evaluation_takes_the_running_statistics_for_the_batchs_part():
    norm = SwitchableNorm(2, momentum=1.0)
    norm.mean_weight.data = norm.variance_weight.data = torch.tensor([-1e4, -1e4, 1e4])
    x = torch.randn(8, 2, 3) * 2 + 5
    norm(x)
    expected = (x - norm.running_mean.view(1, 2, 1)) / (norm.running_var.view(1, 2, 1) + 1e-5).sqrt()
    torch.testing.assert_close(norm.eval()(x), expected, rtol=1e-5, atol=1e-5)


def test_one_position_and_two_axes_are_refused():
    with pytest.raises(InputError, match="2 positions or more"):
        SwitchableNorm(2)(torch.randn(4, 2, 1))
    with pytest.raises(ValueError, match="at least 3D"):
        SwitchableNorm(2)(torch.randn(4, 2))
