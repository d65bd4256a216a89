"""Gradient ICS where G and G′ are known in closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.measures.gradient_ics import gradient_ics


def chain(weights):
    model = nn.Sequential(*[nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights]).double()
    with torch.no_grad():
        for layer, weight in zip(model, weights, strict=True):
            layer.weight.copy_(torch.from_numpy(weight))
    return model


def product(weights, size):
    """W_b … W_a of a run of layers, the identity of none."""
    found = np.eye(size)
    for weight in weights:
        found = weight @ found
    return found


def gradient(weights, x, t, i):
    """∂L/∂W_i = Sᵀ E (P X)ᵀ / n of L = Σ (W_k … W_1 x − t)² / 2n; P the layers before i, S those behind it."""
    before = product(weights[:i], weights[0].shape[1])
    behind = product(weights[i + 1 :], weights[i].shape[0])
    error = behind @ weights[i] @ before @ x - t
    return behind.T @ error @ (before @ x).T / x.shape[1]


def squares(output, targets):
    return (output - targets).square().sum() / (2 * len(output))


@pytest.mark.parametrize("step", ["real", "matched"])
def test_linear_chain(step):
    """Relative error below 1e-9 in float64."""
    draw = np.random.default_rng(0)
    sizes = [4, 6, 5, 7, 3]
    weights = [draw.normal(size=pair[::-1]) / math.sqrt(pair[0]) for pair in itertools.pairwise(sizes)]
    x, t = draw.normal(size=(4, 20)), draw.normal(size=(3, 20))
    real = [0.1 * draw.normal(size=each.shape) for each in weights]
    update = {f"{i}.weight": torch.from_numpy(each) for i, each in enumerate(real)}
    batch = torch.from_numpy(x.T.copy()), torch.from_numpy(t.T.copy())
    table = gradient_ics(chain(weights), squares, batch, update, at="before", matched=(0.05,), debiased=False)
    old = [gradient(weights, x, t, i) for i in range(4)]
    moves = [
        change if step == "real" else -0.05 * np.linalg.norm(w) * g / np.linalg.norm(g)
        for change, w, g in zip(real, weights, old, strict=True)
    ]
    for i, values in enumerate(table.values):
        moved = [w + d for w, d in zip(weights[:i], moves, strict=False)] + weights[i:]
        new = gradient(moved, x, t, i)
        raw, size = np.linalg.norm(new - old[i]), np.linalg.norm(old[i])
        cosine = float((new * old[i]).sum() / (size * np.linalg.norm(new)))
        found = dict(zip(table.columns, values, strict=True))
        if step == "real":
            assert found["raw"] == pytest.approx(raw, rel=1e-9, abs=1e-15)
            assert (found["relative"], found["cosine"]) == pytest.approx((raw / size, cosine), rel=1e-9, abs=1e-15)
        else:
            assert found["relative at ρ=0.05"] == pytest.approx(raw / size, rel=1e-9, abs=1e-15)
            assert found["cosine at ρ=0.05"] == pytest.approx(cosine, rel=1e-9)


def test_debiased_is_free_of_the_batchs_noise():
    """Two scalar layers, x ~ N(0, 1), t = 2x + N(0, 3²): E D = w₁′(w₂w₁′ − 2) − w₁(w₂w₁ − 2), within 4 standard errors.

    The raw figure's square is above by the variance of D over batches, which is that of 32 samples of
    d = (w₂(w₁′² − w₁²) − 2(w₁′ − w₁)) x² − (w₁′ − w₁) x e:  Var d = 2a² + 9b².
    """
    w1, w2, change = 1.0, 1.5, 1.0
    a, b = w2 * ((w1 + change) ** 2 - w1**2) - 2 * change, change
    generator = torch.Generator().manual_seed(0)
    model = chain([np.array([[w1]]), np.array([[w2]])])
    raw, debiased = [], []
    for _ in range(40):
        x = torch.randn(32, 1, generator=generator, dtype=torch.float64)
        t = 2 * x + 3 * torch.randn(32, 1, generator=generator, dtype=torch.float64)
        update = {"0.weight": torch.full((1, 1), change, dtype=torch.float64)}
        table = gradient_ics(model, squares, (x, t), update, at="before", matched=())
        raw.append(table.values[1][0] ** 2)
        debiased.append(table.values[1][4] ** 2)
    for squares_seen, wanted in ((debiased, a**2), (raw, a**2 + (2 * a**2 + 9 * b**2) / 32)):
        error = np.std(squares_seen, ddof=1) / math.sqrt(len(squares_seen))
        assert np.mean(squares_seen) == pytest.approx(wanted, abs=4 * error)
    noise = np.subtract(raw, debiased)
    error = np.std(noise, ddof=1) / math.sqrt(len(noise))
    assert np.mean(noise) == pytest.approx((2 * a**2 + 9 * b**2) / 32, abs=4 * error)
    assert np.mean(noise) > 3 * error
