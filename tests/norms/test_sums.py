import pytest
import torch

from holdfast.norms.sums import along, spread, total


def test_total_is_the_sum_rounded_once():
    x = torch.randn(50, 7, 11) * 1e3
    for axes in ((0,), (1,), (0, 2), (0, 1, 2)):
        assert torch.equal(total(x, axes), x.double().sum(axes, keepdim=True).float())
    assert total(x, ()) is x


def test_spread_broadcasts_and_its_gradient_is_such_a_sum():
    values, x = torch.randn(1, 3, 1, requires_grad=True), torch.randn(20, 3, 5)
    assert torch.equal(spread(values, x), values.expand(20, 3, 5))
    (slope,) = torch.autograd.grad((spread(values, x) * x).sum(), values)
    assert torch.equal(slope, x.double().sum((0, 2), keepdim=True).float())
    whole = torch.randn(20, 3, 5)
    assert torch.equal(spread(whole, x), whole)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_along_an_axis(axis):
    x = torch.randn(3, 3, 3)
    parameter = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(along(parameter, x, axis).select(axis, 1), torch.full((3, 3), 2.0))
    assert torch.equal(along(torch.tensor([4.0]), x, axis), torch.full((3, 3, 3), 4.0))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, of forward mode
def test_gradcheck():
    values = torch.randn(1, 3, 1, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)

    def run(values, x):
        return spread(values, x) * x * total(x.square(), (0, 2))

    assert torch.autograd.gradcheck(run, (values, x))
    assert torch.autograd.gradgradcheck(run, (values, x))
    assert torch.autograd.gradcheck(run, (values, x), check_forward_ad=True)


@pytest.mark.parametrize("last", [False, True])
def test_the_same_bits_for_any_number_of_threads(last):
    x = torch.randn(3, 5, 211, 173)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([total(x, axes) for axes in ((0, 2, 3), (2, 3), (0, 1, 2, 3), (1,))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for each in found[1:] for one, two in zip(found[0], each, strict=True))
