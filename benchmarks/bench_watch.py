"""Overhead of a watch on two small workloads, beside the bare run: interleaved blocks, medians of their ratios.

Run: python benchmarks/bench_watch.py [blocks]
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import holdfast as hf
from holdfast.kernels import compiler

STEPS = 20
OPTIONS = {
    "auto": {"every": "auto"},
    "every 10 steps": {"every": 10},
    "every step": {"every": 1},
}


def mlp() -> tuple[nn.Module, torch.Tensor]:
    """Ten layers of width 256, batch 128."""
    layers = [layer for _ in range(10) for layer in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(256, 10)), torch.randn(128, 256)


def convolutional() -> tuple[nn.Module, torch.Tensor]:
    """Six convolutions with batch normalisation, 32 × 32 images, batch 64."""
    widths = [3, 16, 16, 32, 32, 64, 64]
    layers = [
        layer
        for into, out in itertools.pairwise(widths)
        for layer in (nn.Conv2d(into, out, 3, 1 + (out > into > 3), 1), nn.BatchNorm2d(out), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), torch.randn(64, 3, 32, 32)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> Iterator[float]:
    """Seconds of each block of `STEPS` steps, for ever."""
    labels = torch.randint(0, 10, (len(inputs),))
    while True:
        begin = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        yield time.perf_counter() - begin


def compare(make: Callable[[], tuple[nn.Module, torch.Tensor]], blocks: int) -> None:
    """Print the overhead of each option over the bare run."""
    with tempfile.TemporaryDirectory() as folder:
        arms: dict[str, Iterator[float]] = {}
        runs = []
        for name, options in {"bare": None, **OPTIONS}.items():
            torch.manual_seed(0)
            model, inputs = make()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            if options is not None:
                runs.append(hf.watch(model, optimizer, run=Path(folder) / name, probe=inputs[:64].clone(), **options))
            arms[name] = steps(model, optimizer, inputs)
        for name, arm in arms.items():  # `"auto"` settles over 200 steps, the others are as dear from the start
            for _ in range(200 // STEPS + 1 if name == "auto" else 1):
                next(arm)
        times: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(blocks):
            for name, arm in arms.items():
                times[name].append(next(arm))
                for run in runs:  # one arm's writing must not be paid by the next
                    while run.durable_step < run.steps - 1:
                        time.sleep(0.01)
        bare = statistics.median(times["bare"])
        print(f"{make.__doc__} bare step {1000 * bare / STEPS:.2f} ms (median of {blocks} blocks of {STEPS} steps)")
        for name in OPTIONS:
            ratios = sorted(mine / theirs - 1 for mine, theirs in zip(times[name], times["bare"], strict=True))
            print(f"  {name:15} + {statistics.median(ratios):7.1%}   [{ratios[0]:.1%} … {ratios[-1]:.1%}]")
        for run in runs:
            run.close()


if __name__ == "__main__":
    torch.set_num_threads(2)
    compiler.warm_up()
    compiler.wait(120)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    for workload in (mlp, convolutional):
        compare(workload, count)
