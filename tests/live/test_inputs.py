import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.live.inputs import read_inputs
from holdfast.live.layout import Layout
from holdfast.live.replay import record_call
from holdfast.live.structure import extract


def layouts(model, *args, known=True, **options):
    found = {}
    call = record_call(args, {})
    structure = extract(model, call=call) if known else None
    read_inputs(model, call, lambda s, t, layout: found.update({str(s): layout}), structure=structure, **options)
    return found


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv1d(3, 5, 1), nn.Tanh()

    def forward(self, x):
        return self.act(F.relu(self.conv(x)))


def test_elementwise_layers_read_as_what_feeds_them():
    x = torch.randn(2, 3, 7)
    for known in (True, False):  # without a structure the very tensor tells
        assert layouts(nn.Sequential(nn.Conv1d(3, 5, 1), nn.ReLU(), nn.Tanh()), x, known=known) == {
            f"net/{k}:input#0@train": Layout(0, 1) for k in range(3)
        }
    assert layouts(Functional(), x)["net/act:input#0@train"] == Layout(0, 1)
    assert layouts(nn.Sequential(nn.Linear(7, 5), nn.Tanh()), x)["net/1:input#0@train"] == Layout(0, 2)


def test_sites_of_shared_layers_and_of_several_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.both = nn.Linear(3, 3), nn.Bilinear(3, 3, 2)

        def forward(self, x):
            return self.both(self.fc(x), self.fc(self.fc(x)))

    found = layouts(Twice(), torch.randn(4, 3), stream="gan")
    assert list(found) == [
        "gan/fc:input#0@train",
        "gan/fc:input#1@train",
        "gan/fc:input#2@train",
        "gan/both:input[0]#0@train",
        "gan/both:input[1]#0@train",
    ]


def test_inputs_are_read_before_they_are_overwritten_and_integers_are_not_read():
    model = nn.Sequential(nn.Embedding(5, 3), nn.ReLU(inplace=True))
    nn.init.constant_(model[0].weight, -1.0)
    found = []
    call = record_call((torch.tensor([1, 2]),), {})
    read_inputs(model, call, lambda site, tensor, layout: found.append((site.module, tensor.sum().item())))
    assert found == [("1", -6.0)]


@pytest.mark.parametrize("batch_first", [False, True])
def test_sequences_with_time_first_have_their_samples_on_axis_one(batch_first):
    net = nn.Sequential(nn.Linear(4, 2), nn.LSTM(2, 2, batch_first=batch_first))
    assert layouts(net, torch.zeros(7, 5, 4))["net/0:input#0@train"] == Layout(0 if batch_first else 1, 2)
