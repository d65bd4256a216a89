import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from holdfast.live.leaves import is_leaf, is_rectifier, leaf_modules, observed_leaves, saturation_threshold


def paths(pairs):
    return [path for path, _ in pairs]


def test_leaves_without_shape_changers_dropout_and_empty_shortcuts():
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(4, 4),
        nn.Dropout2d(),
        nn.Identity(),
        nn.Sequential(),
        nn.ModuleList(),
        nn.Sequential(nn.ReLU(), nn.PixelShuffle(1)),
        nn.AlphaDropout(),
        nn.LayerNorm(4),
    )
    assert paths(observed_leaves(net)) == ["1", "6.0", "8"]
    assert paths(leaf_modules(net)) == ["0", "1", "2", "3", "4", "6.0", "6.1", "7", "8"]


def test_a_shared_module_stands_once_at_its_first_path():
    shared = nn.Linear(2, 2)
    assert paths(observed_leaves(nn.Sequential(shared, nn.ReLU(), shared))) == ["0", "1"]


def test_a_parametrised_layer_is_a_leaf_and_its_parametrisation_is_not():
    net = nn.Sequential(spectral_norm(nn.Linear(2, 2)), weight_norm(nn.Conv1d(1, 1, 1)))
    assert paths(observed_leaves(net)) == ["0", "1"]


def test_attention_is_a_leaf_as_a_whole():
    net = nn.TransformerEncoderLayer(4, 1, 8)
    assert paths(observed_leaves(net)) == ["self_attn", "linear1", "linear2", "norm1", "norm2"]


def test_a_model_that_is_one_leaf_and_one_that_is_wrapped():
    assert paths(observed_leaves(nn.Linear(1, 1))) == [""]
    assert paths(observed_leaves(nn.DataParallel(nn.Sequential(nn.Linear(1, 1))))) == ["0"]
    assert not is_leaf(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(("module", "function"), [(nn.Sigmoid(), torch.sigmoid), (nn.Tanh(), torch.tanh)])
def test_the_slope_at_the_threshold_is_5_percent_of_the_greatest(module, function):
    z = torch.tensor([0.0, saturation_threshold(module)], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(z).sum(), z)
    assert math.isclose(slope[1] / slope[0], 0.05, rel_tol=1e-12)
    assert saturation_threshold(function.__name__) == saturation_threshold(function.__name__ + "_") == z[1].item()


@pytest.mark.parametrize("other", [nn.GELU(), nn.Hardtanh(), nn.ReLU(), nn.Linear(1, 1), "gelu", "relu", "softmax"])
def test_no_threshold_where_none_is_meant(other):
    assert saturation_threshold(other) is None


@pytest.mark.parametrize(
    "module",
    [nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(0, 1), nn.Threshold(0.1, 0), nn.LeakyReLU(0)],
)
def test_rectifiers_give_exact_zero_with_zero_slope(module):
    z = torch.full((), -5.0, requires_grad=True)
    output = module(z)
    assert is_rectifier(module)
    assert output.item() == 0
    assert torch.autograd.grad(output, z)[0].item() == 0


@pytest.mark.parametrize(
    "module",
    [nn.LeakyReLU(), nn.ELU(), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.Hardtanh(), nn.Threshold(0, 1)],
)
def test_others_are_no_rectifiers(module):
    assert not is_rectifier(module)


def test_rectifying_functions_by_name():
    assert [is_rectifier(name) for name in ("relu", "relu_", "relu6", "gelu", "leaky_relu")] == [True] * 3 + [False] * 2
