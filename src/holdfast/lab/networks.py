"""The demo's networks: ten layers that suffer, are dead, or are well."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Variant = Literal["suffering", "dead", "healthy"]
Activation = Literal["sigmoid", "relu"]

DEPTH = 10
WIDTH = 64


@dataclass(frozen=True, slots=True)
class Setup:
    """What a variant trains: how it is built and how fast it learns.

    Args:
        build: one phrase for a person.
        rate: learning rate of plain SGD.
    """

    build: str
    rate: float


SETUPS: dict[tuple[Activation, Variant], Setup] = {
    ("sigmoid", "suffering"): Setup("10 sigmoid layers of width 64, Glorot initialisation with gain 4", 1.0),
    ("sigmoid", "dead"): Setup("10 sigmoid layers of width 64, PyTorch's default initialisation", 1.0),
    ("sigmoid", "healthy"): Setup("10 ReLU layers of width 64 with batch normalisation, He initialisation", 0.1),
    ("relu", "suffering"): Setup("10 ReLU layers of width 64, He initialisation, ten times too fast", 1.0),
    ("relu", "dead"): Setup("10 ReLU layers of width 64, PyTorch's default initialisation", 1.0),
    ("relu", "healthy"): Setup("10 ReLU layers of width 64 with batch normalisation, He initialisation", 0.1),
}


def build(
    variant: Variant, *, features: int, classes: int, activation: Activation = "sigmoid", seed: int = 0
) -> nn.Sequential:
    """Build one of the demo's networks: ten hidden layers of width 64 and a linear read-out.

    Args:
        variant: `"suffering"`: sigmoid with Glorot initialisation of gain 4, or ReLU with He initialisation;
            `"dead"`: PyTorch's default initialisation, under which a signal shrinks at every layer;
            `"healthy"`: ReLU with batch normalisation and He initialisation.
        features: width of a sample.
        classes: number of labels.
        activation: of the hidden layers; a healthy network takes ReLU in any case.
        seed: of the weights; the global generator is left as it was.

    Returns:
        A network whose layers are called `linear1`, `sigmoid1`, …, `output`.

    Example:
        >>> network = build("suffering", features=64, classes=10)
        >>> [name for name, _ in network.named_children()][:3], len(network)
        (['linear1', 'sigmoid1', 'linear2'], 21)
    """
    kind = "relu" if variant == "healthy" else activation
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number in range(1, DEPTH + 1):
            # In front of a normaliser a bias would be subtracted again.
            linear = nn.Linear(features if number == 1 else WIDTH, WIDTH, bias=variant != "healthy")
            if variant != "dead":
                _initialise(linear, kind)
            layers[f"linear{number}"] = linear
            if variant == "healthy":
                layers[f"norm{number}"] = nn.BatchNorm1d(WIDTH)
            layers[f"{kind}{number}"] = nn.Sigmoid() if kind == "sigmoid" else nn.ReLU()
        layers["output"] = nn.Linear(WIDTH, classes)
    return nn.Sequential(layers)


def _initialise(linear: nn.Linear, kind: Activation) -> None:
    """Glorot with gain 4 before a sigmoid (the demo's fault), He before a ReLU."""
    if kind == "sigmoid":
        nn.init.xavier_uniform_(linear.weight, gain=4.0)
    else:
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
