"""`hf.preflight` beside one training step: three networks, interleaved, medians; the bar is 3 steps + 1 s.

Run: python benchmarks/bench_preflight.py [repeats]
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import holdfast as hf
from holdfast.kernels import compiler


class Block(nn.Module):
    """A residual block of ResNet-20."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        stride = 1 + (leaving > entering)
        self.body = nn.Sequential(
            nn.Conv2d(entering, leaving, 3, stride, 1, bias=False),
            nn.BatchNorm2d(leaving),
            nn.ReLU(),
            nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False),
            nn.BatchNorm2d(leaving),
        )
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(entering, leaving, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(samples, entering, height, width)` → `(samples, leaving, …)`."""
        return F.relu(self.body(x) + self.shortcut(x))


def resnet20() -> tuple[nn.Module, torch.Tensor]:
    """ResNet-20 of 32 × 32 images, batch 64."""
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Block(into, out) for into, out in itertools.pairwise(widths)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    stem = (nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, *blocks, *head), torch.randn(64, 3, 32, 32)


def perceptron() -> tuple[nn.Module, torch.Tensor]:
    """Ten layers of width 256, batch 128."""
    layers = [layer for _ in range(10) for layer in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(256, 10)), torch.randn(128, 256)


def transformer() -> tuple[nn.Module, torch.Tensor]:
    """Four pre-norm blocks of width 128, 64 positions, batch 16; it names the class of the first position."""
    layer = nn.TransformerEncoderLayer(128, 4, 512, 0.0, batch_first=True, norm_first=True)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
            self.head = nn.Linear(128, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.blocks(x)[:, 0])
            return logits

    return First(), torch.randn(16, 64, 128)


def compare(make: Callable[[], tuple[nn.Module, torch.Tensor]], repeats: int) -> None:
    """Print one workload's rows."""
    torch.manual_seed(0)
    model, inputs = make()
    labels = torch.randint(0, 10, (len(inputs),))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    def preflight() -> None:
        hf.preflight(model, (inputs, labels), F.cross_entropy, optimizer)

    begin = time.perf_counter()
    preflight()
    first = time.perf_counter() - begin  # the very first one while the kernels compile, if this machine has none yet
    compiler.wait(120)
    step()
    times: dict[Callable[[], None], list[float]] = {step: [], preflight: []}
    for _ in range(repeats):
        for work, seconds in times.items():
            begin = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begin)
    each, whole = (statistics.median(times[work]) for work in (step, preflight))
    met = "met" if max(whole, first) <= 3 * each + 1 else "NOT met"
    print(
        f"{make.__name__:<12} step {1e3 * each:7.1f} ms   preflight {1e3 * whole:7.1f} ms, first {1e3 * first:7.1f} ms"
        f"   bar {1e3 * (3 * each + 1):7.1f} ms: {met}   n = {repeats}"
    )


if __name__ == "__main__":
    torch.set_num_threads(2)
    for workload in (perceptron, resnet20, transformer):
        compare(workload, int(sys.argv[1]) if len(sys.argv) > 1 else 15)
