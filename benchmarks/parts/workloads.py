"""What the benchmark of a watch's cost trains: four networks, and families of networks that grow."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCHES = 8
"""Batches drawn in advance, in turn: a network that sees one batch for ever has soon nothing to learn."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A network with its data.

    Args:
        build: makes the network.
        draw: one batch of inputs.
        classes: how many there are; labels are drawn at random.
    """

    build: Callable[[], nn.Module]
    draw: Callable[[], Tensor]
    classes: int = 10

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The batches, with labels: one an input, for sequences one a position."""
        inputs = [self.draw() for _ in range(BATCHES)]
        sizes = [each.numel() if each.dtype == torch.long else len(each) for each in inputs]
        return [(each, torch.randint(0, self.classes, (size,))) for each, size in zip(inputs, sizes, strict=True)]


def perceptron(*widths: int) -> nn.Module:
    """Linear layers with rectifiers between them."""
    layers = [layer for into, out in itertools.pairwise(widths) for layer in (nn.Linear(into, out), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def plain(layers: int, width: int, batch: int) -> Workload:
    """A perceptron of so many layers, all of one width."""
    return Workload(lambda: perceptron(*[width] * layers, 10), lambda: torch.randn(batch, width))


def _norms(name: str) -> nn.Module:
    import norms  # imports our normalisers (4 MB), which the other workloads do not need

    return getattr(norms, name)()


def workload(key: str) -> Workload:
    """One of the four by its name, or `"layers-300"`, `"width-64"`, `"batch-8"` of the growing ones.

    Args:
        key: the name.
    """
    fixed = {
        "mlp3": Workload(lambda: perceptron(784, 256, 128, 10), lambda: torch.randn(64, 784)),
        "mlp10": plain(10, 256, 128),
        "gpt": Workload(lambda: _norms("gpt"), lambda: torch.randint(0, 65, (16, 64)), 65),
        "resnet20": Workload(lambda: _norms("resnet20"), lambda: torch.randn(64, 3, 32, 32)),
    }
    if key in fixed:
        return fixed[key]
    kind, _, size = key.partition("-")
    return {
        "layers": lambda size: plain(size, 32, 32),
        "width": lambda size: plain(10, size, 128),
        "batch": lambda size: plain(10, 256, size),
    }[kind](int(size))
