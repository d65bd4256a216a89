import pytest
import torch

from holdfast.core.errors import InputError
from holdfast.norms import BatchNorm1d, BatchNorm3d, GroupNorm, LayerNorm, LayerNorm2d, Norm, NormSpec, RMSNorm, make


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("batch", 4, 0), BatchNorm1d),
        (("batch", 4, 1), BatchNorm1d),
        (("batch", 4, 3), BatchNorm3d),
        (("layer", 4, 0), LayerNorm),
        (("layer", 4, 2), LayerNorm2d),
        (("layer", 4, 1), Norm),
        (("rms", 4, 0), RMSNorm),
        (("rms", 4, 2), Norm),
    ],
)
def test_the_class_that_is_made(arguments, kind):
    assert type(make(*arguments)) is kind


def test_settings_reach_the_layer():
    norm = make("group", num_channels=64, dims=2, groups=8, eps=1e-3)
    assert isinstance(norm, GroupNorm)
    assert (norm.num_groups, norm.num_channels, norm.eps) == (8, 64, 1e-3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("bach", 4, 2), r"expected the name of a normaliser; got 'bach'; one of .*batch"),
        (("batch", 0, 2), r"1 channel or more and 0 to 3 axes of positions; got 0 and 2"),
        (("batch", 4, 4), r"got 4 and 4"),
        (("instance", 4, 0), r"positions, of which instance statistics are taken; got dims=0"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, text):
    with pytest.raises(InputError, match=text):
        make(*arguments)


def test_a_specification_of_ones_own():
    spec = NormSpec("group-rms", ("channels", "positions"), centre=False, scale="rms", groups=2)
    norm = make(spec, 4)
    x = torch.randn(3, 4, 5)
    parts = x.view(3, 2, 10)
    expected = (parts / (parts.square().mean(2, keepdim=True) + 1e-5).sqrt()).view(3, 4, 5)
    torch.testing.assert_close(norm(x), expected)
