import pytest
import torch
from torch import nn

from holdfast.live.layout import Layout
from holdfast.live.lays import Lays, is_time_first


@pytest.mark.parametrize("batch_first", [False, True])
def test_time_first(batch_first):
    model = nn.ModuleList([nn.LSTM(2, 2, batch_first=batch_first), nn.Linear(2, 2)])
    assert is_time_first(model) is not batch_first
    assert not is_time_first(nn.Linear(2, 2))


def test_a_tensor_that_comes_again_lies_as_it_did_until_it_is_forgotten_with_its_death():
    conv, act = nn.Conv1d(3, 5, 1), nn.Tanh()
    lays = Lays(nn.Sequential(conv, act))
    y = conv(torch.randn(2, 3, 7))
    ((leaf, tensor, layout),) = lays.gave("0", conv, y)
    assert (leaf, tensor is y, layout) == ("", True, Layout(0, 1))
    lays.forget()
    assert lays.of(y, ()) == Layout(0, 1)
    assert lays.of(torch.randn(2, 5, 7), ()) == Layout(0, 2)  # another one: nobody knows
    assert lays.of(torch.randn(2, 5, 7), ("0",)) == Layout(0, 1)
    assert lays.of(torch.randn(2, 4, 7), ("0",)) == Layout(0, 2)  # other axes than the source gave
    del y, tensor
    lays.forget()
    assert not lays._made


def test_outputs_of_elementwise_layers_lie_like_their_input_and_integers_and_empty_ones_not_at_all():
    conv, act = nn.Conv1d(3, 5, 1), nn.Tanh()
    lays = Lays(nn.Sequential(conv, act))
    y = conv(torch.randn(2, 3, 7))
    lays.gave("0", conv, y)
    assert [layout for *_, layout in lays.given("1", act, (y,))] == [Layout(0, 1)]
    assert [layout for *_, layout in lays.gave("1", act, act(y))] == [Layout(0, 1)]
    assert lays.given("1", act, (torch.ones(2, 3, dtype=torch.long), torch.ones(0, 3))) == []
