import copy
import pickle

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.norms import Norm, NormSpec

BATCH = NormSpec("batch", ("samples", "positions"), state="running")


def test_with_running_statistics_it_is_batch_norm():
    ours, theirs = Norm(BATCH, 3, momentum=0.2), nn.BatchNorm2d(3, momentum=0.2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for _ in range(3):
        x = torch.randn(4, 3, 5, 2) * 3 + 1
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_channels_last_in_a_sequence_is_layer_norm():
    spec = NormSpec("layer", ("channels",), affine="elements", features_last=True)
    ours, theirs = Norm(spec, 6), nn.LayerNorm(6)
    x = torch.randn(2, 5, 6, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.telemetry()["mean"].flatten(), x.detach().mean(-1).flatten())


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (NormSpec("x", ("channels",), affine="elements"), "a spec of axes and a scale"),
        (NormSpec("x", (), then="tanh"), "a spec of axes and a scale"),
        (NormSpec("x", ("channels",), state="running"), "one running statistic a channel"),
        (NormSpec("x", ("channels", "positions"), groups=4), "groups that divide the channels; got 4 of 6"),
    ],
)
def test_specs_with_classes_of_their_own_are_refused(spec, text):
    with pytest.raises(InputError, match=text):
        Norm(spec, 6)


def test_inputs_that_do_not_fit_are_refused():
    norm = Norm(BATCH, 3)
    with pytest.raises(InputError, match="at least 2 axes"):
        norm(torch.randn(3))
    with pytest.raises(InputError, match="3 channels on axis 1"):
        norm(torch.randn(2, 4))


def test_copies_and_halves():
    norm = Norm(BATCH, 3).bfloat16()
    assert norm.running_var.dtype == torch.float32
    assert norm(torch.randn(4, 3, 2).bfloat16()).dtype == torch.bfloat16
    for each in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert each.spec == BATCH
        assert each.telemetry() == {}
