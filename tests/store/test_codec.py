import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from holdfast.store.codec import decode, decode_tail, encode, encode_tail

FIGURES = st.floats(width=64) | st.integers(-(2**52), 2**52).map(float) | st.sampled_from([0.0, -0.0, 255.0, 65536.0])


@given(stack=arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 6)), elements=FIGURES))
def test_figures_come_back_to_float32_rounding(stack):
    steps = np.arange(5, 5 + stack.shape[1])
    for chunk, rows in zip(encode(steps, stack), stack, strict=True):
        again, figures = decode(chunk)
        assert again.tolist() == steps.tolist()
        np.testing.assert_allclose(figures, rows, rtol=2.0**-24, atol=0, equal_nan=True)


@pytest.mark.parametrize("count", [2**24 + 1, 2**32 + 1, 2**53 - 1, -(2**31) - 1])
def test_whole_numbers_stay_exact_where_float32_skips_some(count):
    rows = np.array([[count, 0.1], [count - 1, 0.2]], float)
    assert decode(encode(np.array([1, 2]), rows[None])[0])[1][:, 0].tolist() == rows[:, 0].tolist()


@pytest.mark.parametrize("figure", [1e60, -1e39, 1e-50, 5e-324])
def test_figures_beyond_float32_stay_exact(figure):
    rows = np.array([[figure], [0.5]])
    assert decode(encode(np.array([1, 2]), rows[None])[0])[1][:, 0].tolist() == [figure, 0.5]


def test_bins_take_a_third_of_float64():
    bins = np.random.default_rng(0).poisson(40, (1, 64, 64)).astype(float)
    assert len(encode(np.arange(64), bins)[0]) < bins.nbytes / 8


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:4], lambda b: b[:30] + b"x" + b[31:], lambda b: b""])
def test_a_damaged_chunk_is_noticed(damage):
    chunk = encode(np.arange(20), np.random.default_rng(0).normal(size=(1, 20, 3)))[0]
    with pytest.raises(ValueError):  # noqa: PT011 - zlib's words differ between versions
        decode(damage(chunk))


def test_a_tail_row_comes_back_exactly_and_a_damaged_one_is_noticed():
    vector = np.array([0.1, np.nan, 1e300, 7.0])
    data = encode_tail(np.array([3, 9], np.uint32), np.array([1, 3], np.uint32), vector)
    series, parts = decode_tail(data)
    assert list(series) == [3, 9]
    np.testing.assert_array_equal(parts[0], vector[:1])
    np.testing.assert_array_equal(parts[1], vector[1:])
    for damaged in (data[:-1], data[:20] + b"\x07" + data[21:], b"ab"):
        with pytest.raises(ValueError):  # noqa: PT011
            decode_tail(damaged)


def test_a_record_without_figures_has_a_tail_row():
    none = np.array([], np.uint32)
    series, parts = decode_tail(encode_tail(none, none, np.array([])))
    assert (list(series), list(parts)) == ([], [])
