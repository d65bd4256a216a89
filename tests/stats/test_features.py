import math

import pytest
import torch

from holdfast.stats.features import Features
from holdfast.stats.observation import observe


def features(sd, rms=1.0):
    scale = torch.tensor(sd, dtype=torch.float64)
    return Features(torch.zeros(4, len(sd)), scale, scale * 0, rms)


def test_collapsed_is_relative_to_the_site():
    sd = [1.0, 0.0, math.nan, math.inf, 1.1e-6, 0.9e-6]
    assert features(sd).collapsed.tolist() == [False, True, True, True, False, True]
    assert features(sd, rms=1000.0).collapsed.tolist() == [False, True, True, True, True, True]
    assert features(sd, rms=1e-9).collapsed.tolist() == [False, True, True, True, False, False]


def test_rounding_of_a_constant_is_no_signal():
    # What float32 makes of a constant that is computed in another order for every sample.
    x = torch.full((64, 2, 1), 1000.0)
    x[::2, 0] = torch.tensor(1000.0).nextafter(torch.tensor(2000.0))
    x[:, 1] += torch.randn(64, 1)
    assert observe(x).features.collapsed.tolist() == [True, False]


def test_a_site_without_figures_is_collapsed_throughout():
    assert observe(torch.full((3, 2, 1), math.nan)).features.collapsed.all()
    assert observe(torch.zeros(3, 2, 1)).features.collapsed.all()


def test_sizes():
    assert (features([1.0, 2.0]).samples, features([1.0, 2.0]).channels) == (4, 2)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("positions", [1, 7])
def test_of_a_block_as_the_kernel_sees_it_and_equal_blocks_equal_to_the_last_bit(broken, positions):
    torch.manual_seed(0)
    x = 3 * torch.randn(16, 5, positions) + 2
    if broken:
        x[0, 0, 0] = math.nan
        x[1, 1] = math.inf
    mine, kernel = Features.of(x), observe(x).features
    assert mine.values[1, 1].isnan() == broken
    for name in ("values", "sd", "mean"):
        torch.testing.assert_close(getattr(mine, name), getattr(kernel, name), equal_nan=True)
    assert math.isclose(mine.rms, kernel.rms, rel_tol=1e-6)
    assert mine.positions == kernel.positions == positions
    assert Features.of(x.clone()).values.nan_to_num().equal(mine.values.nan_to_num())


def test_of_a_block_without_a_finite_value_or_without_any():
    assert Features.of(torch.full((3, 2, 1), math.nan)).collapsed.all()
    assert Features.of(torch.zeros(0, 2, 1)).collapsed.all()
