import pytest
import torch
from torch.nn import functional as F

from holdfast.live.operations import ACTIVATIONS, FILLING, LAYERS, NORMALISERS, SHAPING, operation_name


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.relu, "relu"),
        (torch.Tensor.relu_, "relu_"),
        (torch.Tensor.__mul__, "mul"),
        (torch.Tensor.__rtruediv__, "div"),
        (torch.Tensor.__getitem__, "getitem"),
        (torch.Tensor.shape.__get__, ""),
        (torch.Tensor.__matmul__, "matmul"),
        (torch.ops.aten.relu, "relu"),
    ],
)
def test_names_are_those_that_a_person_writes(function, name):
    assert operation_name(function) == name


def test_every_word_is_an_operation_of_torch():
    # A misspelt word would silently match nothing.
    python = {"getitem", "setitem", "numpy", "len"}
    for name in sorted(SHAPING | ACTIVATIONS | NORMALISERS | LAYERS | FILLING):
        known = any(hasattr(place, name) for place in (torch, torch.Tensor, F))
        assert known or name in python, name
