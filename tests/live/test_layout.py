import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.live.layout import Layout, Sampling, block, layout_of


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(4, 4), (5, 4), Layout(0, 1)),
        (nn.Linear(4, 4), (5, 7, 4), Layout(0, 2)),
        (nn.Linear(4, 4), (5, 2, 7, 4), Layout(0, 3)),
        (nn.Conv1d(4, 4, 1), (5, 4, 7), Layout(0, 1)),
        (nn.BatchNorm1d(4), (5, 4, 7), Layout(0, 1)),
        (nn.MaxPool2d(2), (5, 4, 8, 8), Layout(0, 1)),
        (nn.ReLU(), (5, 4, 8, 8), Layout(0, 1)),
        (nn.ReLU(), (5, 7, 4), Layout(0, 2)),
        (nn.ReLU(), (5,), Layout(0, None)),
        (nn.LSTM(4, 4), (7, 5, 4), Layout(1, 2)),
        (nn.LSTM(4, 4, batch_first=True), (5, 7, 4), Layout(0, 2)),
    ],
)
def test_layout_follows_the_layer(module, shape, expected):
    assert layout_of(module, torch.zeros(shape)) == expected


def test_an_elementwise_layer_inherits_its_producers_layout():
    after_conv1d = layout_of(nn.Conv1d(4, 4, 1), torch.zeros(5, 4, 7))
    assert layout_of(nn.ReLU(), torch.zeros(5, 4, 7), after_conv1d) == Layout(0, 1)


def test_a_recurrent_layers_states_have_their_samples_second():
    for module in (nn.LSTM(4, 4, 2), nn.GRU(4, 4, 2, batch_first=True)):
        assert layout_of(module, torch.zeros(2, 5, 4), leaf="1.0") == Layout(1, 2)
        assert layout_of(module, torch.zeros(2, 4), leaf="1") is None


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(4, 4), (7, 5, 4), Layout(1, 2)),
        (nn.LayerNorm(4), (7, 5, 4), Layout(1, 2)),
        (nn.RMSNorm(4), (7, 5, 4), Layout(1, 2)),
        (nn.Embedding(9, 4), (7, 5, 4), Layout(1, 2)),
        (nn.GELU(), (7, 5, 4), Layout(1, 2)),
        (nn.Linear(4, 4), (5, 4), Layout(0, 1)),
        (nn.Linear(4, 4), (5, 2, 7, 4), Layout(0, 3)),
        (nn.Conv1d(4, 4, 1), (5, 4, 7), Layout(0, 1)),
        (nn.GELU(), (5, 4, 7, 7), Layout(0, 1)),
        (nn.LSTM(4, 4, batch_first=True), (5, 7, 4), Layout(0, 2)),
    ],
)
def test_where_sequences_are_time_first_samples_are_second(module, shape, expected):
    assert layout_of(module, torch.zeros(shape), time_first=True) == expected


def test_a_scalar_has_no_layout():
    assert layout_of(nn.ReLU(), torch.tensor(1.0)) is None


@given(
    samples=st.integers(1, 40),
    channels=st.integers(1, 40),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    limit=st.one_of(st.none(), st.integers(1, 4000)),
    phase=st.floats(0, 1, exclude_max=True),
    channels_last=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_block_holds_only_elements_of_the_tensor_and_stays_in_bounds(
    samples, channels, height, width, limit, phase, channels_last
):
    images = torch.arange(samples * channels * height * width, dtype=torch.float64)
    images = images.reshape(samples, channels, height, width)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    layout = Layout(0, 1)
    sampling = Sampling.of(images, layout, limit)
    view = block(images, layout, sampling, phase)
    assert view.shape[0] >= 1
    assert view.shape[1] >= 1
    assert view.shape[2] >= 1
    assert view.unique().numel() == view.numel(), "an element was read twice"
    if limit is None:
        assert view.numel() == images.numel()
    else:
        assert view.numel() <= max(limit, view.shape[1])
    # Every element sits in the row of its sample and the column of its channel.
    rows = torch.div(view, channels * height * width, rounding_mode="floor")
    assert (rows == rows[:, :1, :1]).all()
    columns = torch.div(view, height * width, rounding_mode="floor") % channels
    assert (columns == columns[:1, :, :1]).all()


def test_reading_all_of_a_contiguous_tensor_copies_nothing():
    for images in (torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)):
        sampling = Sampling.of(images, Layout(0, 1), None)
        assert block(images, Layout(0, 1), sampling, 0.0).data_ptr() == images.data_ptr()


def test_over_the_steps_every_position_is_read():
    images = torch.arange(1024.0).reshape(1, 1, 32, 32)
    sampling = Sampling.of(images, Layout(0, 1), 64)
    seen = {
        int(each)
        for step in range(400)
        for each in block(images, Layout(0, 1), sampling, (step * 0.6180339) % 1).flatten()
    }
    assert len(seen) == 1024
