"""The landscape of a quadratic, L = ½ (θ − m)ᵀ H (θ − m), in closed form; double precision, tolerance 1e-9."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from holdfast.measures import landscape, maximum_learning_rate, sweep_learning_rates
from holdfast.measures.landscape import MULTIPLES

RATE = 0.05


class Point(nn.Module):
    """A point in a space, in two tensors."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.from_numpy(values[:3].reshape(1, 3)))
        self.tail = nn.Parameter(torch.from_numpy(values[3:]))

    def forward(self, _: Tensor) -> Tensor:
        return torch.cat([self.head.reshape(-1), self.tail])


def test_landscape_of_a_quadratic() -> None:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    spectrum = np.array([9.0, 4.0, 2.0, 1.0, 0.5, 0.1, 0.0, -0.5])
    hessian = basis @ np.diag(spectrum) @ basis.T
    minimum, theta = rng.standard_normal(8), rng.standard_normal(8)
    curvature = torch.from_numpy(hessian)
    seen = landscape(
        Point(theta),
        lambda point, m: 0.5 * (point - m) @ curvature @ (point - m),
        (torch.zeros(4, 1), torch.from_numpy(minimum)),
        learning_rate=RATE,
        directions=3,
    )
    g = hessian @ (theta - minimum)
    sizes = RATE * np.array(MULTIPLES)
    places = [theta - minimum - s * g for s in sizes]
    losses = np.array([0.5 * place @ hessian @ place for place in places])
    np.testing.assert_allclose([row[0] for row in seen.losses.values], losses, rtol=1e-9)
    expected = {
        "loss-variation": np.ptp(losses),
        "gradient-predictiveness": 4 * RATE * np.linalg.norm(hessian @ g),
        "relative-gradient-change": 4 * RATE * np.linalg.norm(hessian @ g) / np.linalg.norm(g),
        "effective-smoothness": np.linalg.norm(hessian @ g) / np.linalg.norm(g),
    }
    for name, value in expected.items():
        assert seen.reading(name).value == pytest.approx(value, rel=1e-9), name
    # along any direction the gradient changes by no more than the largest curvature, and alike at every step size
    slopes = np.array(seen.slopes.values)
    np.testing.assert_allclose(slopes, np.tile(slopes[0], (8, 1)), rtol=1e-9)
    assert slopes.max() <= 9.0


def test_random_directions_show_the_mean_square_curvature() -> None:
    """E ‖H u‖² = tr(H²)/d for u even on the sphere: 64 directions, tolerance five standard errors of the mean."""
    rng = np.random.default_rng(1)
    spectrum = np.linspace(0.5, 5.0, 8)
    seen = landscape(
        Point(rng.standard_normal(8)),
        lambda point, h: 0.5 * (h * point * point).sum(),
        (torch.zeros(4, 1), torch.from_numpy(spectrum)),
        learning_rate=RATE,
        directions=64,
    )
    squares = np.array(seen.slopes.values[0][1:]) ** 2
    error = squares.std(ddof=1) / np.sqrt(len(squares))
    assert abs(squares.mean() - np.mean(spectrum**2)) < 5 * error


@pytest.mark.parametrize(("momentum", "threshold"), [(0.0, 2.0), (0.8, 3.6)])
def test_maximum_learning_rate_on_a_quadratic_is_the_threshold_over_the_curvature(
    momentum: float, threshold: float
) -> None:
    """Trained for 600 steps with torch's SGD: within 1 % of 2 / λmax, and of 2 (1 + μ) / λmax."""
    spectrum = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)

    def train(rate: float) -> float:
        theta = nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = torch.optim.SGD([theta], rate, momentum=momentum)
        for _ in range(600):
            optimizer.zero_grad()
            theta.grad = spectrum * theta.detach()
            optimizer.step()
        return float((0.5 * spectrum * theta.detach() ** 2).sum())

    sweep = sweep_learning_rates(train, float(0.5 * spectrum.sum()), low=0.01, high=10.0, points=4, refine=8)
    found = maximum_learning_rate(sweep)
    assert found.value == pytest.approx(threshold / 4.0, rel=0.01)
    low, high = found.interval
    assert low / 1.01 <= threshold / 4.0 <= high * 1.01
    assert high / low < 1.01
