import pytest
import torch
from torch import nn

from holdfast.treatments.incoming import Stream, batch_fails, stream_into
from holdfast.treatments.places import leaves


@pytest.mark.parametrize(
    ("model", "path", "shape", "expected"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.Tanh()), 0, None, Stream(4, 0, True, None, 1)),
        (nn.Sequential(nn.Linear(4, 6), nn.Tanh()), 1, (5, 4), Stream(6, 0, True, 5, 1)),
        (nn.Sequential(nn.Linear(4, 6), nn.Tanh()), 1, (5, 9, 4), Stream(6, 1, True, 5, 1)),
        (nn.Sequential(nn.Conv2d(3, 7, 1), nn.ReLU()), 1, (2, 3, 8, 8), Stream(7, 2, False, 2, 1)),
        (nn.Sequential(nn.Conv2d(3, 7, 1), nn.Flatten(), nn.ReLU()), 2, (2, 3, 8, 8), None),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), 0, None, None),
    ],
)
def test_what_flows_into_a_layer(model, path, shape, expected):
    order = leaves(model, None if shape is None else torch.zeros(shape))
    assert stream_into(order, model[path]) == expected


@pytest.mark.parametrize(
    ("stream", "fails"),
    [
        (Stream(6, 0, True, 8, 1), False),
        (Stream(6, 0, True, None, 1), False),
        (Stream(6, 0, True, 7, 1), True),
        (Stream(6, 1, True, 64, 1), True),
        (Stream(6, 2, False, 64, 1), False),
        (Stream(6, 0, True, 64, 2), True),
    ],
)
def test_where_batch_statistics_fail(stream, fails):
    assert batch_fails(nn.Linear(6, 1), stream) is fails
    assert batch_fails(nn.Sequential(nn.Linear(6, 1), nn.LayerNorm(1)), stream)
