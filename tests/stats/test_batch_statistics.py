import numpy as np
import pytest
import torch

from holdfast.stats.batch_statistics import BatchStatistics, Running, functional_square


def clustered(generator, samples, share, positions=8, channels=16):
    """Unit variance, of which a share is common to all positions of a sample."""
    own = torch.randn(samples, channels, 1, generator=generator, dtype=torch.float64)
    rest = torch.randn(samples, channels, positions, generator=generator, dtype=torch.float64)
    return share**0.5 * own + (1 - share) ** 0.5 * rest


def test_mean_and_variance_are_batch_norms_own():
    x = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0)) * 3 + 1
    norm = torch.nn.BatchNorm1d(5, momentum=1.0)
    norm(x)
    seen = BatchStatistics.of(x)
    assert seen.mean == pytest.approx(norm.running_mean.numpy(), rel=1e-5)
    assert seen.variance == pytest.approx(norm.running_var.numpy(), rel=1e-5)


@pytest.mark.parametrize("samples", [2, 4, 32])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_errors_are_those_of_repeated_batches(samples, share):
    generator = torch.Generator().manual_seed(1)
    seen = [BatchStatistics.of(clustered(generator, samples, share)) for _ in range(400)]
    means, variances = np.stack([each.mean for each in seen]), np.stack([each.variance for each in seen])
    assert np.mean([each.mean_error for each in seen]) == pytest.approx(means.var(), rel=0.1)
    # What the between-sample part is short of is counted in full: never less than the truth, but for its own scatter.
    assert np.mean([each.variance_error for each in seen]) == pytest.approx(variances.var(0).mean(), rel=0.35)
    assert np.mean([each.spread for each in seen]) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("block", [torch.ones(1, 3, 4), torch.ones(0, 3, 4), torch.ones(4, 0, 2), torch.ones(4, 3, 0)])
def test_nothing_without_two_samples(block):
    assert BatchStatistics.of(block) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_where_a_value_is_not_finite(value):
    block = torch.ones(4, 3, 2)
    block[1, 1, 1] = value
    assert BatchStatistics.of(block) is None


def test_functional_square_is_the_difference_of_the_two_outputs():
    x = torch.randn(64, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 + 1
    norm = torch.nn.BatchNorm1d(3, affine=False).double()
    norm.running_mean += torch.tensor([0.5, -2.0, 1.0])
    norm.running_var *= torch.tensor([0.3, 9.0, 4.0])
    running = Running(norm.running_mean.numpy().copy(), norm.running_var.numpy().copy(), norm.eps, 0.0)
    evaluated = norm.eval()(x)
    difference = (evaluated - norm.train()(x)).square().mean((0, 2))
    seen = BatchStatistics.of(x, running=running)
    # `variance` is the unbiased one of the running averages, training divides by the biased one: 1/320 apart.
    assert functional_square(seen.shift, seen.stretch) == pytest.approx(difference.numpy(), rel=0.08)


def test_errors_in_units_of_the_running_averages():
    x = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen = BatchStatistics.of(x, running=Running(np.zeros(2), np.full(2, 4.0), 0.0, 0.0))
    assert seen.shift == pytest.approx(seen.mean / 2)
    assert seen.stretch == pytest.approx(seen.variance / 4 - 1)
    assert (seen.variance < 4).all()  # the lesser of the two is the unit of the errors
    assert seen.shift_error == pytest.approx(seen.mean_error / seen.variance)
    assert seen.stretch_error == pytest.approx(seen.variance_error / seen.variance**2)
