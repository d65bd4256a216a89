"""What the figures of a block cost: ratios within one run, in interleaved rounds, with their spread.

    python benchmarks/bench_kernels.py

Peers: the same figures from separate torch calls (the tests' definitions, in the tensor's own type: no bins and no
channels, so less work than ours), the plain-PyTorch reference, and `x.sum()`. One thread each.

At the end 134 MB as a watch reads them in exact mode, on two threads: moments, extremes and counts of all elements, of
every channel too, and a sketch of some. The bars are 3 × `x.sum()`, and a fortieth of the separate calls' time.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.core.site import Site
from holdfast.kernels import compiler
from holdfast.kernels.block_ref import summarise_block_ref
from holdfast.kernels.dispatch import summarise_block
from holdfast.live.layout import Layout, Sampling
from holdfast.monitor.reader import Reader
from holdfast.stats.observation import observe

CASES: dict[str, Callable[[], Tensor]] = {
    "64 × 256 × 1, float32": lambda: torch.randn(64, 256, 1),
    "64 × 256 × 1, bfloat16": lambda: torch.randn(64, 256, 1).bfloat16(),
    "16 × 16 × 64, float32": lambda: torch.randn(16, 16, 64),
    "16 × 16 × 64, channels last": lambda: torch.randn(16, 64, 16).transpose(1, 2),
    "64 × 10 × 1, float32": lambda: torch.randn(64, 10, 1),
    "64 × 64 × 1024 (16 MiB), float32": lambda: torch.randn(64, 64, 1024),
}
SECONDS_EACH = 2.0


def separate(x: Tensor) -> tuple[Tensor, ...]:
    """Moments, extremes and counts of all values by one torch call each."""
    mean = x.mean()
    d = x - mean
    finite = x.isfinite()
    return (
        mean, d.square().mean(), d.pow(3).mean(), d.pow(4).mean(), x.amin(), x.amax(), (x == 0).sum(),
        finite.sum(), x.isnan().sum(), x.isposinf().sum(), x.isneginf().sum(), (x.abs() > 2.0).sum(),
    )  # fmt: skip


def clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interval(values: list[float]) -> str:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return f"{statistics.median(ordered):8.2f} [{low:.2f}, {high:.2f}]"


def compare(make: Callable[[], Tensor]) -> tuple[dict[str, list[float]], int]:
    """Ratios round by round: peers side by side, so that a busy machine slows all of them."""
    x = make()
    calls: dict[str, Callable[[], object]] = {
        "kernel": lambda: summarise_block(x, -2, 2.0),
        "observe": lambda: observe(x, exponent=-2, threshold=2.0),
        "separate": lambda: separate(x),
        "reference": lambda: summarise_block_ref(x, -2, 2.0),
        "sum": x.sum,
    }
    for call in calls.values():
        call()
    rounds: list[dict[str, float]] = []
    end = time.perf_counter() + SECONDS_EACH
    while time.perf_counter() < end or len(rounds) < 5:
        rounds.append({name: clock(call) for name, call in calls.items()})
    ratios = {
        "kernel, µs": [each["kernel"] * 1e6 for each in rounds],
        "kernel, ns an element": [each["kernel"] * 1e9 / x.numel() for each in rounds],
        "observe, µs": [each["observe"] * 1e6 for each in rounds],
        "separate torch calls ÷ kernel": [each["separate"] / each["kernel"] for each in rounds],
        "reference ÷ kernel": [each["reference"] / each["kernel"] for each in rounds],
        "kernel ÷ x.sum()": [each["kernel"] / each["sum"] for each in rounds],
    }
    return ratios, len(rounds)


def large() -> None:
    """134 MB as a watch reads them."""
    torch.set_num_threads(2)
    x = torch.randn(64, 64, 8192)
    layout = Layout(0, 1)
    reader = Reader(Site("conv", "output"), x, layout, Sampling.of(x, layout, None), 2.0, {("conv", "output", ""): -2})
    rounds: list[tuple[float, float, float]] = []
    for _ in range(11):
        each = (
            clock(lambda: reader.read(x, 0.0, features=False)),
            clock(x.sum),
            clock(lambda: separate(x)),
        )
        rounds.append(each)
    rounds = rounds[1:]
    print(f"\n64 × 64 × 8192 (134 MB), float32, two threads ({len(rounds)} rounds)")
    print(f"  {'read, ms':<32}{interval([1e3 * each[0] for each in rounds])}")
    print(f"  {'read ÷ x.sum(), bar 3':<32}{interval([each[0] / each[1] for each in rounds])}")
    print(f"  {'separate calls ÷ read, bar 40':<32}{interval([each[2] / each[0] for each in rounds])}")


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    waited = clock(lambda: compiler.wait(240.0))
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread; medians [10 %, 90 %]")
    print(f"kernel ready after {waited:.1f} s (compiled, or loaded from Numba's cache): {compiler.state()}")
    for name, make in CASES.items():
        ratios, rounds = compare(make)
        print(f"\n{name} ({rounds} rounds)")
        for label, values in ratios.items():
            print(f"  {label:<32}{interval(values)}")
    large()


if __name__ == "__main__":
    main()
