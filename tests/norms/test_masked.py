import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.errors import InputError
from holdfast.norms import BatchNorm1d, GroupNorm, InstanceNorm1d


def padded(lengths, channels=4, seed=0, filling=1e9):
    """Sequences of unlike length in one batch, with rubbish behind their ends."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), channels, max(lengths), generator=generator, dtype=torch.float64) * 3 + 2
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return x.masked_fill(~mask.unsqueeze(1), filling), mask


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=2, max_size=6), st.integers(0, 9))
def test_batch_norm_of_padded_sequences_is_that_of_their_values(lengths, seed):
    x, mask = padded(lengths, seed=seed)
    norm, plain = BatchNorm1d(4).double(), BatchNorm1d(4).double()
    values = x.movedim(1, -1)[mask]  # (all positions that count, channels)
    y = norm(x, mask)
    torch.testing.assert_close(y.movedim(1, -1)[mask], plain(values))
    assert (y.movedim(1, -1)[~mask] == 0).all()
    torch.testing.assert_close(dict(norm.state_dict()), dict(plain.state_dict()))
    torch.testing.assert_close(norm.eval()(x, mask).movedim(1, -1)[mask], plain.eval()(values))


@pytest.mark.parametrize("norm", [InstanceNorm1d(4, affine=True), GroupNorm(2, 4)], ids=["instance", "group"])
def test_each_sample_is_normalised_as_if_it_were_alone(norm):
    norm = norm.double()
    torch.nn.init.normal_(norm.weight)
    x, mask = padded([5, 2, 7])
    y = norm(x, mask)
    for sample, length in enumerate([5, 2, 7]):
        alone = norm(x[sample : sample + 1, :, :length])
        torch.testing.assert_close(y[sample : sample + 1, :, :length], alone)
        assert (y[sample, :, length:] == 0).all()


def test_padding_gets_no_gradient_and_gives_none():
    x, mask = padded([4, 2])
    x.requires_grad_()
    norm = BatchNorm1d(4).double()
    norm(x, mask).square().sum().backward()
    assert (x.grad.movedim(1, -1)[~mask] == 0).all()
    assert torch.isfinite(x.grad).all()
    y = torch.where(mask.unsqueeze(1), x.detach(), float("nan")).requires_grad_()
    norm(y, mask).square().sum().backward()
    assert torch.isfinite(y.grad).all()


def test_gradients():
    x, mask = padded([4, 2, 3], channels=2, filling=1.0)
    norm = BatchNorm1d(2).double()
    assert torch.autograd.gradcheck(lambda x: norm(x, mask), (x.requires_grad_(),))


def test_halves_keep_their_type():
    x, mask = padded([4, 2])
    assert BatchNorm1d(4)(x.bfloat16(), mask).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (torch.ones(2, 3), r"expected a bool mask of shape \(2, 5\); got torch.float32 of shape \(2, 3\)"),
        (torch.ones(2, 4, dtype=torch.bool), r"got torch.bool of shape \(2, 4\); True where x counts"),
        (torch.zeros(2, 5, dtype=torch.bool), r"more than 1 value for every statistic"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(shapes_unchecked, mask, text):
    with pytest.raises(InputError, match=text):
        BatchNorm1d(4)(torch.randn(2, 4, 5), mask)


def test_a_sample_of_one_position_is_refused_where_it_stands_alone():
    x, mask = padded([5, 1])
    with pytest.raises(InputError, match="a mask that leaves fewer"):
        InstanceNorm1d(4)(x, mask)
    assert BatchNorm1d(4).double()(x, mask).shape == x.shape
