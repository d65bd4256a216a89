"""What the figures of a block cost: ratios within one run, in interleaved rounds, with their spread.

    python benchmarks/bench_kernels.py

Peers: the same figures from separate torch calls (the tests' definitions, in the tensor's own type: no bins and no
channels, so less work than ours), the plain-PyTorch reference, and `x.sum()`. One thread each.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from holdfast.kernels import compiler
from holdfast.kernels.block_ref import summarise_block_ref
from holdfast.kernels.dispatch import summarise_block
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


if __name__ == "__main__":
    main()
