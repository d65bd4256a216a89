"""What a normaliser costs, forward and backward, against torch's: ratios within one run, with their spread.

    python benchmarks/norms.py [--rounds 31] [--only batch] [--write]

Each round times torch's layer and ours one after the other (which goes first alternates), on 2 threads, with the same
input and gradient; a ratio is the median over rounds, with a 95 % bootstrap interval. `limit` is our time over that of
the least memory traffic (read x, write y; read x and dy, write dx: 5 tensors), from a copy measured in the same rounds.
`error` is the greatest difference from float64 of y and dx, in units of the greatest value. `temporaries` is the peak
of memory beyond y and the gradients. The allocator keeps what is freed: else much of the time of both layers goes into
page faults of y and dx, and ratios tend to 1; `--fresh-memory` measures that instead. `--write` puts the tables and
the environment in `benchmarks/norms.md`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import norms

THREADS = 2
MAPS = ((64, 16, 32, 32), (128, 64, 16, 16), (32, 256, 8, 8))
ROWS = ((4096, 512), (16384, 1024), (2048, 4096))
SMALL = ((64, 128), (16, 64))
SMALL_MAPS = ((4, 8, 8, 8),)
BARS = {"rms": 7.0, "batch": 2.0, "instance": 2.0, "group": 1.2, "layer": 1.0}
SMALL_BAR = 0.9
Case = tuple[str, tuple[int, ...], bool]


def layers(kind: str, shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """PyTorch's and ours, in this order."""
    width, dims = shape[1], len(shape) - 2
    theirs: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: (nn.BatchNorm2d if dims else nn.BatchNorm1d)(width),
        "instance": lambda: nn.InstanceNorm2d(width),
        "group": lambda: nn.GroupNorm(8, width),
        "layer": lambda: nn.LayerNorm(width),
        "rms": lambda: nn.RMSNorm(width),
    }
    settings = {"groups": 8} if kind == "group" else {}
    return theirs[kind](), norms.make(kind, width, dims, **settings)


def cases(only: str | None) -> list[Case]:
    found: list[Case] = []
    for kind in ("batch", "instance", "group"):
        found += [(kind, shape, last) for shape in (*MAPS, *SMALL_MAPS) for last in (False, True)]
    found += [(kind, shape, False) for kind in ("layer", "rms") for shape in (*ROWS, *SMALL)]
    found += [(kind, shape, False) for kind in ("batch", "group") for shape in SMALL]
    return [case for case in found if only in (None, case[0])]


def tensors(shape: tuple[int, ...], last: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    if last:
        x, dy = (each.to(memory_format=torch.channels_last) for each in (x, dy))
    return x.requires_grad_(), dy


def passes(layer: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
    y = layer(x)
    return y, *torch.autograd.grad(y, (x, *layer.parameters()), dy)


def clock(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median, and the 95 % bootstrap interval of it."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(draws, 1), (2.5, 97.5))
    return float(np.median(values)), float(low), float(high)


def error(layer: nn.Module, x: Tensor, dy: Tensor, kind: str) -> float:
    """Greatest difference from float64 of the output and the gradient, of the greatest value."""
    found = passes(layer, x, dy)[:2]
    exact_layer = copy.deepcopy(layers(kind, tuple(x.shape))[0]).double()
    found = tuple(each.detach() for each in found)
    exact = passes(exact_layer, x.detach().double().requires_grad_(), dy.double())[:2]
    return max(
        float((a.double() - b.detach()).abs().max() / b.detach().abs().max()) for a, b in zip(found, exact, strict=True)
    )


def temporaries(layer: nn.Module, x: Tensor, dy: Tensor) -> int:
    """Peak bytes beyond y and the gradients, from PyTorch's allocations and (ours) NumPy's."""
    import tracemalloc

    from torch.profiler import ProfilerActivity, profile

    passes(layer, x, dy)
    tracemalloc.start()
    passes(layer, x, dy)
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = passes(layer, x, dy)
    peak = present = 0
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        present += event.nbytes()
        peak = max(peak, present)
    results = sum(each.numel() * each.itemsize for each in kept)
    return max(0, peak - results) + numpy_peak


def measure(case: Case, rounds: int) -> dict[str, object]:
    kind, shape, last = case
    x, dy = tensors(shape, last)
    pair = layers(kind, shape)
    calls = [lambda layer=layer: passes(layer, x, dy) for layer in pair]
    source, target = x.detach().flatten(), torch.empty(x.numel())
    small = x.numel() * 4 <= 65_536
    repeats = 20 if small else 1
    for call in (*calls, *calls):
        call()
    times: list[list[float]] = [[], [], []]
    for index in range(rounds):
        order = (0, 1) if index % 2 else (1, 0)
        for which in order:
            times[which].append(clock(calls[which], repeats))
        times[2].append(clock(lambda: target.copy_(source), repeats))
    torch_s, ours_s, copy_s = (np.array(each) for each in times)
    ratio, low, high = interval(torch_s / ours_s)
    return {
        "layer": kind,
        "shape": " × ".join(map(str, shape)) + (", channels_last" if last else ""),
        "torch, ms": statistics.median(times[0]) * 1e3,
        "ours, ms": statistics.median(times[1]) * 1e3,
        "ratio": ratio,
        "low": low,
        "high": high,
        "bar": SMALL_BAR if small else BARS[kind],
        "limit": float(np.median(ours_s / (2.5 * copy_s))),
        "error torch": error(pair[0], x, dy, kind),
        "error ours": error(pair[1], x, dy, kind),
        "temporaries torch": temporaries(pair[0], x, dy),
        "temporaries ours": temporaries(pair[1], x, dy),
    }


def row(found: dict[str, object]) -> str:
    met = "met" if found["ratio"] >= found["bar"] else "**missed**"
    return (
        f"| {found['layer']} | {found['shape']} | {found['torch, ms']:.3f} | {found['ours, ms']:.3f} "
        f"| {found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}] | {found['bar']:g} {met} "
        f"| {found['limit']:.2f} | {found['error torch']:.1e}, {found['error ours']:.1e} "
        f"| {found['temporaries torch'] / 1e3:,.0f}, {found['temporaries ours'] / 1e3:,.0f} |"
    )


class Basic(nn.Module):
    """A block of ResNet-20."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity() if before == width else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def resnet20() -> nn.Module:
    blocks = [Basic(a, b, s) for a, b, s in [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)]]
    blocks += [Basic(64, 64, 1) for _ in range(2)]
    stem = (nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Layer(nn.Module):
    """A pre-norm transformer's layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x))


def gpt() -> nn.Module:
    return nn.Sequential(nn.Embedding(65, 128), *[Layer(128, 4) for _ in range(4)], nn.RMSNorm(128), nn.Linear(128, 65))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(inputs).flatten(0, -2), targets).backward()
    optimizer.step()


def models(rounds: int) -> list[str]:
    """Step time of whole models, with torch's layers and with ours in their place."""
    found = []
    for name, build, inputs, targets in (
        ("ResNet-20, batch 64 of 3 × 32 × 32", resnet20, torch.randn(64, 3, 32, 32), torch.arange(64) % 10),
        (
            "GPT, 4 layers, d 128, T 64, batch 16, RMSNorm",
            gpt,
            torch.arange(1024).view(16, 64) % 65,
            torch.arange(1024) % 65,
        ),
    ):
        torch.manual_seed(0)
        theirs = build()
        ours = norms.adopt(copy.deepcopy(theirs))
        steps = []
        for model in (theirs, ours):
            optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

            steps.append(functools.partial(train, model, optimizer, inputs, targets))
        for _ in range(3):
            for step in steps:
                step()
        times: list[list[float]] = [[], []]
        for index in range(rounds):
            for which in (0, 1) if index % 2 else (1, 0):
                times[which].append(clock(steps[which], 1))
        ratio, low, high = interval(np.array(times[0]) / np.array(times[1]))
        a, b = (statistics.median(each) * 1e3 for each in times)
        found.append(f"| {name} | {a:.1f} | {b:.1f} | {ratio:.3f} [{low:.3f}, {high:.3f}] |")
        print(found[-1], flush=True)
    return found


def environment(rounds: int) -> str:
    return (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {THREADS} threads, torch "
        f"{torch.__version__}, Python {platform.python_version()}, {rounds} rounds, seed 0"
    )


def keep_memory() -> None:
    """Let glibc keep freed memory, as a process does whose heap other tensors hold."""
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--only", choices=sorted(BARS))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--fresh-memory", action="store_true")
    given = parser.parse_args()
    if not given.fresh_memory:
        keep_memory()
    torch.set_num_threads(THREADS)
    head = [
        "| layer | shape | torch, ms | ours, ms | torch ÷ ours [95 %] | bar | limit | error: torch, ours "
        "| temporaries, KB: torch, ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(head), flush=True)
    rows = []
    for case in cases(given.only):
        large = int(np.prod(case[1])) > 8_000_000
        rows.append(row(measure(case, max(15, given.rounds // 2) if large else given.rounds)))
        print(rows[-1], flush=True)
    if given.only:
        return
    steps = ["| model | torch, ms a step | ours, ms a step | torch ÷ ours [95 %] |", "|---|---|---|---|"]
    print("\n".join(steps), flush=True)
    steps += models(given.rounds)
    if given.write:
        text = ["# Normalisers against torch's", "", environment(given.rounds), "", *head, *rows, "", *steps, ""]
        note = "`python benchmarks/norms.py --write` makes this file; what the columns mean stands in its docstring."
        Path(__file__).with_suffix(".md").write_text("\n".join([*text[:2], note, "", *text[2:]]))


if __name__ == "__main__":
    main()
