"""`a + b` is the statistic of the concatenated data: exactly for counts and bins, to rounding for moments."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from holdfast.core.errors import StatisticError
from holdfast.kernels import compiler
from holdfast.stats.channels import ChannelMoments
from holdfast.stats.covariance import Covariance
from holdfast.stats.features import Features
from holdfast.stats.observation import observe
from holdfast.stats.paired_difference import PairedDifference
from holdfast.stats.sketch import Sketch

CHANNELS, POSITIONS = 2, 3
EXPONENT = -1

VALUES = st.one_of(
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([0.0, -0.0, 1e30, -1e30, 1e-30, 0.1, math.nan, math.inf, -math.inf]),
)
BLOCKS = (
    st.integers(0, 6)
    .flatmap(lambda samples: arrays.arrays(np.float32, (samples, CHANNELS, POSITIONS), elements=VALUES))
    .map(torch.from_numpy)
)
EXAMPLES = settings(max_examples=60, deadline=None)


@pytest.fixture(params=["reference", "compiled"], autouse=True, scope="module")
def path(request):
    """Both kernels obey the laws."""
    patch = pytest.MonkeyPatch()
    if request.param == "reference":
        patch.setattr(compiler, "kernel", lambda: None)
    else:
        assert compiler.wait(240.0)
    yield request.param
    patch.undo()


def see(block):
    return observe(block, exponent=EXPONENT, threshold=1.0)


def assert_same(a, b, size):
    """Exactly in what is counted; to rounding of the values' powers in what is summed."""
    assert a.counts == b.counts
    assert a.sketch.bins == b.sketch.bins
    assert a.extremes == b.extremes
    assert a.moments.count == b.moments.count
    n = a.moments.count
    assert a.moments.mean == pytest.approx(b.moments.mean, rel=1e-12, abs=1e-14 * size)
    for power, name in ((2, "m2"), (3, "m3"), (4, "m4")):
        want = getattr(b.moments, name)
        assert getattr(a.moments, name) == pytest.approx(want, rel=1e-10, abs=1e-12 * n * size**power), name


def assert_same_channels(a, b, size):
    np.testing.assert_array_equal(a.count, b.count)
    np.testing.assert_array_equal(a.zeros, b.zeros)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-14 * size)
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-10, atol=1e-12 * size**2 * max(1.0, a.count.max(initial=1.0)))


def size_of(*blocks):
    finite = [block[block.isfinite()].abs() for block in blocks]
    return max([0.0, *(float(each.max()) for each in finite if each.numel())])


@EXAMPLES
@given(BLOCKS, BLOCKS)
def test_merging_is_concatenating(a, b):
    together, one, other = see(torch.cat([a, b])), see(a), see(b)
    size = size_of(a, b)
    assert_same(one.summary + other.summary, together.summary, size)
    assert_same_channels(one.channels + other.channels, together.channels, size)


@EXAMPLES
@given(BLOCKS, BLOCKS, BLOCKS)
def test_merging_is_associative(a, b, c):
    x, y, z = see(a), see(b), see(c)
    size = size_of(a, b, c)
    assert_same((x.summary + y.summary) + z.summary, x.summary + (y.summary + z.summary), size)
    assert_same_channels((x.channels + y.channels) + z.channels, x.channels + (y.channels + z.channels), size)


@EXAMPLES
@given(BLOCKS, BLOCKS)
def test_merging_commutes(a, b):
    x, y = see(a), see(b)
    size = size_of(a, b)
    assert_same(x.summary + y.summary, y.summary + x.summary, size)
    assert_same_channels(x.channels + y.channels, y.channels + x.channels, size)


@EXAMPLES
@given(BLOCKS)
def test_no_samples_change_nothing(a):
    seen, nothing = see(a), see(a[:0])
    assert seen.summary + nothing.summary == seen.summary == nothing.summary + seen.summary
    assert seen.channels + nothing.channels == seen.channels == nothing.channels + seen.channels
    assert seen.channels + ChannelMoments.empty() == seen.channels


@EXAMPLES
@given(BLOCKS)
def test_the_order_of_samples_does_not_matter(a):
    assert_same(see(a.flip(0)).summary, see(a).summary, size_of(a))


@EXAMPLES
@given(BLOCKS)
def test_every_finite_value_is_in_one_bin(a):
    summary = see(a).summary
    assert summary.sketch.count == summary.counts.finite == summary.moments.count == int(a.isfinite().sum())


FINITE = (
    st.integers(1, 6)
    .flatmap(lambda samples: arrays.arrays(np.float32, (samples, 3), elements=st.floats(-1e6, 1e6, width=32)))
    .map(torch.from_numpy)
)


def difference(values):
    scale = torch.ones(values.shape[1], dtype=torch.float64)
    still = Features(torch.zeros_like(values), scale, scale, 1.0)
    return PairedDifference.of(still, Features(values, scale, scale, 1.0))


@EXAMPLES
@given(FINITE, FINITE, FINITE)
def test_paired_differences_merge(a, b, c):
    together = difference(torch.cat([a, b, c]))
    size = size_of(a, b, c)
    merged = (difference(a) + difference(b)) + difference(c)
    for each in (
        merged,
        difference(a) + (difference(b) + difference(c)),
        (difference(b) + difference(c)) + difference(a),
    ):
        assert each.n == together.n
        np.testing.assert_allclose(each.mean, together.mean, rtol=1e-12, atol=1e-14 * size)
        np.testing.assert_allclose(each.m2, together.m2, rtol=1e-10, atol=1e-12 * size**2 * together.n)
    assert difference(a) + PairedDifference.empty(3) == difference(a)


@EXAMPLES
@given(FINITE, FINITE, FINITE)
def test_covariances_merge_and_come_apart(a, b, c):
    x, y, z, together = (Covariance.of(each) for each in (a, b, c, torch.cat([a, b, c])))
    size = size_of(a, b, c)
    for each in ((x + y) + z, x + (y + z), (z + x) + y, (x + y + z + z) - z):
        assert each.count == together.count
        np.testing.assert_allclose(each.mean, together.mean, rtol=1e-12, atol=1e-14 * size)
        np.testing.assert_allclose(each.m2, together.m2, rtol=1e-10, atol=1e-12 * size**2 * together.count)
    assert x + Covariance.of(a[:0]) == x == Covariance.of(a[:0]) + x


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_sketches_of_different_scales_refuse_unless_one_is_empty(a, b):
    one, other = Sketch(a, (1,) * 64), Sketch(b, (2,) * 64)
    if a == b:
        assert (one + other).bins == (3,) * 64
        return
    with pytest.raises(StatisticError, match=rf"expected a sketch of scale 2\*\*{a}; got one of scale 2\*\*{b}"):
        one + other
    assert one + Sketch.empty(b) == one == Sketch.empty(b) + one
