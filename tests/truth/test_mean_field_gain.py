"""Backward gain of wide networks at initialisation against mean-field theory.

ReLU, He's initialisation: the gradient keeps its norm, a gain of 1 (He et al. 2015). BatchNorm before ReLU: the squared
norm grows by π/(π−1) a layer on the way back, whatever the scale of the weights (Yang et al. 2019, section 4), so the
gain is √(π/(π−1)) = 1.2112. Both hold for infinite width; the second for a large batch.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.measures.backward_gain import backward_gain
from holdfast.measures.gradient_norm import gradient_norm
from holdfast.measures.gradient_slope import gradient_slope

WIDTH, BATCH, DEPTH = 512, 256, 24
RELU, BATCH_NORM = 1.0, math.sqrt(math.pi / (math.pi - 1))


def norms_of(scale: float, *, normalised: bool, seed: int) -> list[Reading]:
    """Gradient norm at the output of every block of linear, perhaps BatchNorm, and ReLU."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(BATCH, WIDTH, generator=generator)
    outputs = []
    for _ in range(DEPTH):
        weight = torch.randn(WIDTH, WIDTH, generator=generator) * scale / math.sqrt(WIDTH)
        h = (h @ weight.T).requires_grad_()
        if normalised:
            h = nn.functional.batch_norm(h, None, None, training=True)
        h = h.relu()
        h.retain_grad()
        outputs.append(h)
    h.backward(torch.randn(h.shape, generator=generator))
    return [
        gradient_norm(each.grad, site=Site(f"block{k}", "grad_output"), step=1)
        for k, each in enumerate(outputs)
        if each.grad is not None
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("scale", "normalised", "expected"),
    [(math.sqrt(2), False, RELU), (math.sqrt(2), True, BATCH_NORM), (0.3, True, BATCH_NORM)],
    ids=["He", "BatchNorm", "BatchNorm, small weights"],
)
def test_gain_by_layer_and_over_depth(scale: float, normalised: bool, expected: float, seed: int) -> None:
    """Each gain within 7 % (the ReLU network's fluctuate by 2 %), their geometric mean within 1.5 %."""
    norms = norms_of(scale, normalised=normalised, seed=seed)
    assert len(norms) == DEPTH
    gains = [backward_gain(source, own) for source, own in itertools.pairwise(norms)]
    values = [each.value for each in gains if each is not None]
    assert len(values) == DEPTH - 1
    assert all(value == pytest.approx(expected, rel=0.07) for value in values)
    assert math.exp(math.fsum(map(math.log, values)) / len(values)) == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize(("normalised", "expected"), [(False, RELU), (True, BATCH_NORM)])
def test_slope_over_depth(normalised: bool, expected: float) -> None:
    """The slope over depth is minus the logarithm of the gain, within 0.01 nats a layer."""
    slope = gradient_slope(norms_of(math.sqrt(2), normalised=normalised, seed=7), site=Site("", "grad_output"), step=1)
    assert slope is not None
    assert slope.value == pytest.approx(-math.log(expected), abs=0.01)


def test_half_of_he_halves_the_gain() -> None:
    """A factor in the weights is a factor in the gain: what the theory says of other initialisations."""
    norms = norms_of(math.sqrt(2) / 2, normalised=False, seed=1)
    values = [backward_gain(source, own) for source, own in itertools.pairwise(norms)]
    logs = [math.log(each.value) for each in values if each is not None]
    assert math.exp(math.fsum(logs) / len(logs)) == pytest.approx(0.5, rel=0.015)
