import numpy as np
import pytest
import torch

from holdfast.core.errors import StatisticError
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.observation import observe


def test_sd_of_every_channel():
    x = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1])[:, None]
    np.testing.assert_allclose(observe(x).channels.sd, x.double().std((0, 2), correction=0), rtol=1e-9)


def test_dead_means_zero_on_every_sample():
    x = torch.ones(4, 4, 2)
    x[:, 0] = 0.0
    x[:3, 1] = 0.0
    x[:, 2] = float("nan")
    x[:, 3], x[0, 3, 0] = 0.0, float("nan")
    assert observe(x).channels.dead.tolist() == [True, False, False, True]


def test_channels_without_data_have_no_sd():
    channels = observe(torch.full((3, 1, 1), float("nan"))).channels
    assert np.isnan(channels.sd).all()
    assert channels.mean.tolist() == [0.0]


def test_a_channel_that_one_side_lacks_takes_the_other_side_s_figures():
    only_nan, data = (
        observe(torch.full((3, 1, 1), float("nan"))).channels,
        observe(torch.tensor([[[5.0]], [[7.0]]])).channels,
    )
    for merged in (only_nan + data, data + only_nan):
        assert merged == data


def test_packed_row_by_row():
    channels = ChannelMoments(np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([5.0, 6.0]), np.array([0.0, 1.0]))
    assert channels.pack().tolist() == [1, 3, 5, 0, 2, 4, 6, 1]


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(StatisticError, match="expected statistics of 2 channels; got statistics of 3; merge"):
        ChannelMoments.empty(2) + ChannelMoments.empty(3)
