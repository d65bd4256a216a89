"""Which path serves which tensor, and what is refused."""

import inspect
import math

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.kernels import compiler, dispatch
from holdfast.kernels.dispatch import readable, summarise_block


class Wrapped(torch.Tensor):
    pass


def test_ordinary_memory_is_readable(dtype, layout):
    assert readable(layout(torch.randn(4, 3, 2).to(dtype)))
    assert readable(nn.Parameter(torch.randn(4, 3, 2)))
    assert readable(torch.randn(4, 3, 2, requires_grad=True) * 2)


@pytest.mark.parametrize(
    "block",
    [
        torch.empty(3, 0, 2),
        torch.empty(3, 2, 2, device="meta"),
        torch.zeros(3, 2, 2, dtype=torch.complex64).conj().imag,  # a negated view
        torch.zeros(3, 2, 2).as_subclass(Wrapped),
        torch.zeros(3, 2, 2, dtype=torch.int32),
        torch.zeros(3, 2, 2).to_sparse(),
    ],
    ids=["empty", "meta", "negated", "subclass", "integer", "sparse"],
)
def test_other_memory_is_not(block):
    assert not readable(block)


def test_functorch_wrappers_are_not_readable():
    seen = []
    torch.func.vmap(lambda x: seen.append(readable(x)) or x)(torch.randn(2, 3, 4, 5))
    torch.func.grad(lambda x: seen.append(readable(x)) or x.sum())(torch.randn(3, 4, 5))
    assert seen == [False, False]


def test_a_negated_view_is_read_with_its_sign(kernel):
    view = torch.full((3, 2, 2), 1 + 2j).conj().imag
    assert view.is_neg()
    assert summarise_block(view, 0, math.inf).totals[1] == -2


def test_a_subclass_is_served_by_the_reference(kernel):
    assert summarise_block(torch.ones(3, 2, 2).as_subclass(Wrapped), 0, math.inf).totals[1] == 1


def test_the_reference_serves_until_the_kernel_is_ready(monkeypatch):
    x = torch.randn(30, 4, 2)
    monkeypatch.setattr(compiler, "kernel", lambda: None)
    slow = summarise_block(x, -2, 1.0)
    assert slow.totals[0] == 240
    assert slow.features.shape == (30, 4)


def test_the_kernel_serves_once_it_is_ready(kernel, monkeypatch):
    monkeypatch.setattr(dispatch, "summarise_block_ref", lambda *_: pytest.fail("the reference served"))
    assert summarise_block(torch.ones(3, 2, 2), 0, math.inf).totals[0] == 12


def test_nothing_is_recorded_for_backward(kernel, monkeypatch):
    x = torch.randn(3, 2, 2, requires_grad=True)
    assert not any(each.requires_grad for each in summarise_block(x, 0, math.inf))
    monkeypatch.setattr(compiler, "kernel", lambda: None)
    assert not any(each.requires_grad for each in summarise_block(x, 0, math.inf))


@pytest.mark.parametrize(
    ("block", "got"),
    [
        (torch.zeros(3, 2, 2, dtype=torch.int32), r"\(3, 2, 2\) of torch.int32 on cpu"),
        (torch.zeros(3, 2), r"\(3, 2\) of torch.float32 on cpu"),
        (torch.zeros(3, 2, 2, device="meta"), r"\(3, 2, 2\) of torch.float32 on meta"),
    ],
)
def test_what_cannot_be_summarised_is_refused(block, got):
    unchecked = inspect.unwrap(summarise_block)  # the checker of annotations would refuse some of them before
    with pytest.raises(InputError, match=f"expected a tensor .*; got {got}; reshape it"):
        unchecked(block, 0, math.inf)
