import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from holdfast.monitor.blas import on_one_thread


def threads():
    """Of NumPy's own library: SciPy brings another, which may be loaded later."""
    libraries = [each for each in threadpool_info() if each["internal_api"] == "openblas"]
    return [each["num_threads"] for each in libraries if "numpy" in each["filepath"]]


@pytest.fixture
def two():
    if not threads():
        pytest.skip("NumPy has no OpenBLAS of its own here")
    with threadpool_limits(2, user_api="blas"):
        yield


def test_products_within_take_one_thread_and_those_outside_their_own(two):
    @on_one_thread
    def inside(x, *, scale):
        return threads(), scale * (x @ x)

    found, product = inside(np.eye(2), scale=3)
    assert set(found) == {1}
    assert set(threads()) == {2}
    np.testing.assert_array_equal(product, 3 * np.eye(2))


def test_threads_come_back_after_an_exception(two):
    @on_one_thread
    def failing():
        raise ArithmeticError("inside")

    with pytest.raises(ArithmeticError, match="inside"):
        failing()
    assert set(threads()) == {2}


def test_pytorchs_threads_stay(two):
    openmp = [each for each in threadpool_info() if each["user_api"] == "openmp"]
    inside = on_one_thread(threadpool_info)()
    assert [each for each in inside if each["user_api"] == "openmp"] == openmp
