from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from holdfast.lab.networks import DEPTH, SETUPS, WIDTH, Activation, Variant, build


def linears(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network if isinstance(module, nn.Linear)]  # type: ignore[attr-defined]


def test_every_variant_of_every_activation_has_a_setup_and_runs() -> None:
    for activation in get_args(Activation):
        for variant in get_args(Variant):
            assert SETUPS[activation, variant].build.startswith("10 ")
            network = build(variant, features=12, classes=3, activation=activation)
            assert network(torch.randn(5, 12)).shape == (5, 3)
            assert len(linears(network)) == DEPTH + 1


def test_the_suffering_network_is_glorot_with_gain_four() -> None:
    network = build("suffering", features=64, classes=10)
    for linear in linears(network)[:DEPTH]:
        bound = 4 * (6 / (WIDTH + WIDTH)) ** 0.5
        assert float(linear.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
        assert not linear.bias.any()
    assert sum(isinstance(module, nn.Sigmoid) for module in network) == DEPTH


def test_the_signal_of_the_dead_network_dies_and_that_of_the_others_does_not() -> None:
    samples = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    spread = {}
    for variant in get_args(Variant):
        with torch.no_grad():
            spread[variant] = float(build(variant, features=64, classes=10)[:-1](samples).std(0).mean())
    assert spread["dead"] < 1e-5
    assert spread["suffering"] > 1e-3  # a sigmoid with gain 4 loses some of it, too
    assert spread["healthy"] > 0.3


def test_the_healthy_network_has_normalisation_no_sigmoid_and_no_bias_in_front() -> None:
    network = build("healthy", features=64, classes=10)
    assert [name for name, _ in network.named_children()][:4] == ["linear1", "norm1", "relu1", "linear2"]
    assert [linear.bias is None for linear in linears(network)] == [True] * DEPTH + [False]


def test_the_seed_decides_and_the_global_generator_stays() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build("dead", features=8, classes=2, seed=seed)[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
