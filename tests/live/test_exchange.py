import contextlib

import torch
from torch import nn

from holdfast.live.exchange import exchanged


def test_the_very_tensors_hold_the_values_and_then_their_own_again():
    layer = nn.LSTM(3, 4)
    weight = layer.weight_hh_l0
    own, versions = weight.detach().clone(), weight._version
    with exchanged([(weight, torch.zeros(16, 4, dtype=torch.float64))]):
        assert not layer.weight_hh_l0.any()
        assert not layer._flat_weights[1].any()
    assert torch.equal(weight, own)
    assert layer.weight_hh_l0 is weight
    assert weight._version == versions


def test_nested_and_after_an_error():
    weight = nn.Parameter(torch.ones(2))
    with exchanged([(weight, torch.full((2,), 2.0))]):
        with contextlib.suppress(ValueError), exchanged([(weight, torch.full((2,), 3.0))]):
            assert weight.tolist() == [3, 3]
            raise ValueError("planted")
        assert weight.tolist() == [2, 2]
    assert weight.tolist() == [1, 1]
