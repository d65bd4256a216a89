"""The compiled kernel against the reference, over types, layouts, shapes and hard values."""

import math

import numpy as np
import pytest
import torch

from holdfast.kernels import dispatch
from holdfast.kernels.bins import POSITIVE_EDGES
from holdfast.kernels.block_ref import summarise_block_ref
from holdfast.kernels.dispatch import summarise_block
from holdfast.kernels.figures import TOTALS

COUNTS = [TOTALS.index(name) for name in ("n_finite", "zeros", "nan", "posinf", "neginf", "beyond")]


@pytest.fixture(autouse=True)
def _only_compiled(kernel, monkeypatch):
    def refuse(*_):
        raise AssertionError("the reference served")

    monkeypatch.setattr(dispatch, "summarise_block_ref", refuse)


def _assert_equal(block, exponent=-2, threshold=1.0):
    got, want = summarise_block(block, exponent, threshold), summarise_block_ref(block, exponent, threshold)
    assert got.bins.tolist() == want.bins.tolist()
    assert got.totals[COUNTS].tolist() == want.totals[COUNTS].tolist()
    assert got.totals[5:7].tolist() == want.totals[5:7].tolist()
    assert got.channels[:, [0, 3]].tolist() == want.channels[:, [0, 3]].tolist()
    # To rounding of the greatest value's powers: what any order of summation may cost, 2**-53 each.
    n = max(1.0, float(want.totals[0]))
    size = max(abs(float(want.totals[5])), abs(float(want.totals[6]))) if want.totals[0] else 0.0
    centred = math.sqrt(float(want.totals[2]) / n)
    assert float(got.totals[1]) == pytest.approx(float(want.totals[1]), rel=0, abs=1e-13 * size)
    for power in (2, 3, 4):
        noise = (
            1e-11 * math.sqrt(float(want.totals[4]) * n) if power == 2 else 1e-11 * n * size ** (power - 2) * centred**2
        )
        close = pytest.approx(float(want.totals[power]), rel=1e-11, abs=noise, nan_ok=True)
        assert float(got.totals[power]) == close, TOTALS[power]
    tolerance = {"rtol": 1e-10, "atol": 1e-13 * size}
    np.testing.assert_allclose(got.channels[:, 1], want.channels[:, 1], **tolerance)
    np.testing.assert_allclose(got.channels[:, 2], want.channels[:, 2], rtol=1e-10, atol=1e-13 * centred**2 * n)
    np.testing.assert_allclose(got.features, want.features, rtol=1e-6, atol=1e-13 * size)


def test_hard_values(dtype, hard):
    torch.manual_seed(0)
    _assert_equal(hard(torch.randn(40, 9, 6)).to(dtype))


def test_layouts(dtype, layout):
    torch.manual_seed(1)
    _assert_equal(layout(torch.randn(30, 12, 6).to(dtype)))


def test_layouts_with_odd_values(layout):
    torch.manual_seed(2)
    x = torch.randn(30, 12, 6)
    x[torch.rand_like(x) < 0.2] = math.nan
    _assert_equal(layout(x))


def test_shapes(shape):
    torch.manual_seed(3)
    x = torch.randn(shape)
    _assert_equal(x)
    _assert_equal(x.transpose(1, 2).contiguous().transpose(1, 2))
    x[torch.rand_like(x) < 0.3] = math.inf
    _assert_equal(x)
    _assert_equal(x.transpose(1, 2).contiguous().transpose(1, 2))


@pytest.mark.parametrize("exponent", [-1100, -30, -2, 0, 7, 1100])
def test_scales(exponent):
    torch.manual_seed(4)
    x = torch.randn(20, 6, 5).double() * 2.0 ** max(-200, min(200, exponent)) * torch.logspace(-3, 3, 5)
    _assert_equal(x, exponent)
    _assert_equal(torch.randn(20, 6, 5), exponent)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_number(dtype):
    # All 65,536 bit patterns: subnormals, both zeros, NaNs of either sign.
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(64, 1024, 1)
    _assert_equal(x, 0)


def test_edges_fall_into_the_same_bins():
    edges = torch.tensor(POSITIVE_EDGES)
    near = torch.cat([edges, -edges, edges.nextafter(torch.zeros(())), edges * 0, -edges * 0])
    _assert_equal(near[:, None, None], 0)


def test_same_bits_every_time():
    torch.manual_seed(5)
    x = torch.randn(33, 40, 11)
    first = summarise_block(x, -2, 1.0)
    for _ in range(5):
        again = summarise_block(x.clone(), -2, 1.0)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(("offset", "factor"), [(2000, 1), (100, 0.01), (0, 1e30), (1e6, 1.0)])
def test_precision_against_exact_sums(offset, factor):
    torch.manual_seed(6)
    x = torch.randn(64, 32, 8) * factor + offset
    exact = x.double().numpy().astype(np.longdouble).ravel()
    d = exact - exact.mean()
    totals = summarise_block(x, 0, math.inf).totals
    assert float(totals[1]) == pytest.approx(float(exact.mean()), rel=1e-12, abs=1e-14 * factor)
    assert float(totals[2]) == pytest.approx(float((d**2).sum()), rel=1e-12)
    assert float(totals[4]) == pytest.approx(float((d**4).sum()), rel=1e-12)


def test_constant_data_have_no_variance():
    for x in (torch.full((100, 3, 7), 0.1), torch.full((100, 70, 1), 0.1)):
        figures = summarise_block(x, 0, math.inf)
        assert figures.totals[2:5].tolist() == [0, 0, 0]
        assert not figures.channels[:, 2].any()


def test_results_do_not_share_the_block_s_memory():
    x = torch.randn(8, 4, 1)
    before = summarise_block(x, 0, math.inf)
    features = before.features.clone()
    x.zero_()
    assert torch.equal(before.features, features)


def test_flushing_of_subnormals_does_not_change_half_precision():
    x = torch.arange(2**15).to(torch.int16).view(torch.float16).view(32, 1024, 1)
    want = summarise_block(x, 0, 1.0)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        got = summarise_block(x, 0, 1.0)
    finally:
        torch.set_flush_denormal(False)
    assert got.totals[:5].tolist() == want.totals[:5].tolist()
    assert got.totals[7] == want.totals[7] == 1
