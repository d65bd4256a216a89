"""What a watch costs: seconds a step and memory, beside the bare loop and beside what others use.

    python benchmarks/overhead.py [--only mlp3] [--rounds 5] [--sets 1] [--seconds 0.5] [--threads 2] [--processor]

Peers that are not installed are skipped; for all of them: `pip install tensorboard wandb`.

Arms: "auto" (statistics and probes within 1 % of the bare step), "every step" (statistics of every layer at every step,
probes within 1 %), "with probes" (those at every step too), sampled or exact; by hand: a few `.item()` of every layer.

Each arm trains the same network from the same seed in a process of its own (`parts/arm.py`). A round gives each arm a
block of `--seconds`, one after the other, in an order drawn anew; between blocks nothing runs. An overhead is what a
step took beyond the bare block of the same round: the median over rounds, with a 95 % bootstrap interval. What works
within a budget pays for few dear steps, which a median over blocks would not see: for it, time in all over bare time in
all, with blocks three times as long. "bare, again" is a second bare process: what it seems to cost is what this machine
cannot resolve; a bar is missed where the whole interval lies beyond it. The optimiser is SGD without momentum, the
cheapest, so that a share of the step is largest. What "auto" takes is less than two processes differ by anyway: for it
see `budget.py`, which compares within one.

Peak memory is that of the arm's process. "libraries only" has imported the package and compiled its kernels and watches
nothing; what a watch itself needs is its peak beyond that one.

`--processor` takes for a clock the processor time of all threads of the process, for a machine that others use too:
what runs beside training, on another core, is then counted in full. `--growth` adds the cost of "auto" and of
statistics without probes as layers, width and batch grow. `--write` (21 rounds in three sets of processes
unless told otherwise, and the growth: an hour) makes `overhead.md` and `overhead.svg`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from parts.arm import BUDGETED, Arm
from parts.picture import picture

Growth = Mapping[str, tuple[str, tuple[int, ...]]]
Series = dict[str, dict[str, list[tuple[float, float]]]]

WORKLOADS = {
    "mlp3": "MLP, 784-256-128-10, batch 64",
    "mlp10": "MLP, 10 layers, 256 wide, batch 128",
    "gpt": "GPT, 4 layers, d 128, T 64, batch 16",
    "resnet20": "ResNet-20, batch 64 of 3 × 32 × 32",
}
GROWTH: Growth = {
    "layers": ("layers of an MLP 32 wide, batch 32", (10, 30, 100, 300, 1000)),
    "width": ("width of 10 layers, batch 128", (32, 128, 512, 1024)),
    "batch": ("batch of 10 layers, 256 wide", (8, 32, 128, 512, 2048)),
}
OURS = (
    "auto",
    "every step",
    "every step, exact",
    "every step with probes",
    "every step with probes, exact",
)
PEERS = {"by hand": None, "TensorBoard": "tensorboard", "wandb": "wandb"}
"""Others, and the package that each needs."""
ARMS = ("bare", "bare, again", "libraries only", *OURS, *PEERS)
GROWING = ("auto", "statistics at every step")
BARS = {
    ("resnet20", "every step"): 3.0,
    ("gpt", "every step"): 5.0,
    ("mlp10", "every step"): 15.0,
    ("resnet20", "every step, exact"): 15.0,
    **{(workload, "auto"): 1.0 for workload in WORKLOADS},
}
"""Percent."""
LONG = 3
"""By how much the blocks of budgeted arms and of bare ones are longer: dear steps are rare."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Args:
        rounds: of blocks, in all.
        sets: of processes that share them: where a process lies in memory makes a per cent of difference.
        seconds: of a block.
        warm_up: steps before the first block; as the arm asks when `None`.
        threads: of PyTorch.
        processor: take processor time for a clock.
        seed: of weights, data and orders.
    """

    rounds: int
    sets: int
    seconds: float
    warm_up: int | None = None
    threads: int = 2
    processor: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found about one arm.

    Args:
        seconds: a step, of each round.
        bare: the bare step of the same rounds.
        peak: bytes, the greatest of the sets.
        steps: in all, with statistics, with probes; where it is one of ours.
    """

    seconds: np.ndarray
    bare: np.ndarray
    peak: int
    steps: tuple[int, int, int] | None

    def overhead(self, *, total: bool) -> tuple[float, float, float]:
        """In per cent, with the interval.

        Args:
            total: of the sums over rounds, instead of the median round.
        """
        return overhead(self.seconds, self.bare, total=total)


def overhead(ours: np.ndarray, bare: np.ndarray, *, total: bool) -> tuple[float, float, float]:
    """Per cent beyond bare, and the ends of the 95 % bootstrap interval over rounds.

    Args:
        ours: seconds a step, of each round.
        bare: of the same rounds.
        total: sum over sum, instead of the median of the ratios.
    """

    def found(rounds: np.ndarray) -> np.ndarray:
        if total:
            return ours[rounds].sum(-1) / bare[rounds].sum(-1)
        return np.median(ours[rounds] / bare[rounds], axis=-1)

    every = np.arange(len(ours))
    draws = np.random.default_rng(0).choice(every, (2000, len(ours)))
    low, high = np.percentile(found(draws), (2.5, 97.5))
    return tuple(float(100 * each - 100) for each in (found(every), low, high))


def measure(workload: str, arms: Sequence[str], plan: Plan) -> dict[str, Measured]:
    """Train a workload under each arm, block by block."""
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    ends: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    orders = random.Random(plan.seed)
    for which in range(plan.sets):
        running = start(workload, arms, plan)
        try:
            for _ in range(len(range(which, plan.rounds, plan.sets))):
                for arm in orders.sample(list(running), len(running)):
                    long = LONG if arm in (*BUDGETED, "bare", "bare, again") else 1
                    times[arm].append(running[arm].block(plan.seconds * long)[plan.processor])
            for arm, process in running.items():
                ends[arm].append(process.end())
        finally:
            for process in running.values():
                process.kill()
    return {arm: gathered(times[arm], times["bare"], ends[arm]) for arm in arms if times[arm]}


def start(workload: str, arms: Sequence[str], plan: Plan) -> dict[str, Arm]:
    """Start the processes one by one; an arm that fails is told and left out."""
    running: dict[str, Arm] = {}
    for arm in arms:
        process = Arm(workload, arm, seed=plan.seed, threads=plan.threads, warm_up=plan.warm_up)
        try:
            process.ready()
        except RuntimeError as error:
            if arm == "bare":
                raise
            print(f"skipped {arm}: {error}", flush=True)
            process.kill()
        else:
            running[arm] = process
    return running


def gathered(seconds: list[float], bare: list[float], ends: list[dict[str, Any]]) -> Measured:
    steps = None
    if all(end["account"] for end in ends):
        steps = tuple(sum(column) for column in zip(*((end["steps"], *end["account"]) for end in ends), strict=True))
    return Measured(np.array(seconds), np.array(bare), max(end["peak"] for end in ends), steps)


def table(workload: str, found: dict[str, Measured]) -> list[str]:
    """A workload's rows."""
    rows = [
        f"### {WORKLOADS[workload]}",
        "",
        "| arm | ms a step | overhead, % [95 %] | bar, % | statistics, probes | peak, MB | beyond bare | watch's own |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for arm, each in found.items():
        value, low, high = each.overhead(total=arm in BUDGETED)
        cells = [arm, f"{1e3 * np.median(each.seconds):.3f}"]
        cells.append("" if arm == "bare" else f"{value:+.1f} [{low:+.1f}, {high:+.1f}]")
        cells.append(judged(BARS.get((workload, arm)), low, value, high, arm))
        cells.append("" if each.steps is None else ", ".join(one_in(each.steps[0], part) for part in each.steps[1:]))
        cells += memory(arm, found)
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def one_in(steps: int, part: int) -> str:
    return f"1 in {steps / part:.0f}" if part else "none"


def memory(arm: str, found: dict[str, Measured]) -> list[str]:
    """Peak in MB, what of it is beyond the bare process, and what beyond the libraries."""
    peak = {arm: each.peak / 1e6 for arm, each in found.items()}
    cells = [f"{peak[arm]:.0f}", "" if arm == "bare" else f"{peak[arm] - peak['bare']:+.0f}"]
    if arm not in OURS or "libraries only" not in found:
        return [*cells, ""]
    own = peak[arm] - peak["libraries only"]
    return [*cells, f"{own:+.0f} ({100 * own / peak['bare']:+.1f} %)"]


def judged(bar: float | None, low: float, value: float, high: float, arm: str) -> str:
    if bar is None:
        return ""
    if value <= bar and (arm != "auto" or high <= 1.5 * bar):
        return f"{bar:g} met"
    return f"{bar:g} {'**missed**' if low > bar else 'not resolved'}"


def grown(plan: Plan, kinds: Growth) -> tuple[list[str], Series]:
    """The table of what grows, and its series: of each kind and arm, size and overhead."""
    rows = [
        "| what grows | size | bare, ms a step | auto, % [95 %] | statistics at every step, % [95 %] |",
        "|---|---:|---:|---:|---:|",
    ]
    series: Series = {}
    for kind, (title, sizes) in kinds.items():
        series[title] = {arm: [] for arm in GROWING}
        for size in sizes:
            found = measure(f"{kind}-{size}", ("bare", *GROWING), plan)
            cells = []
            for arm, points in series[title].items():
                value, low, high = found[arm].overhead(total=arm in BUDGETED)
                points.append((size, value))
                cells.append(f"{value:+.1f} [{low:+.1f}, {high:+.1f}]")
            rows.append(f"| {title} | {size} | {1e3 * np.median(found['bare'].seconds):.2f} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    return rows, series


def available(arms: Sequence[str]) -> list[str]:
    """The arms whose packages are there; the others are told."""
    missing = {arm: need for arm, need in PEERS.items() if need and importlib.util.find_spec(need) is None}
    for arm, need in missing.items():
        print(f"skipped {arm}: the package {need} is not installed (pip install {need})", flush=True)
    return [arm for arm in arms if arm not in missing]


def machine(threads: int) -> str:
    """Where it was measured, and with what."""
    installed = [name for name in ("torch", "holdfast", "tensorboard", "wandb") if importlib.util.find_spec(name)]
    versions = ", ".join(f"{name} {version(name)}" for name in installed)
    return (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {threads} threads, "
        f"Python {platform.python_version()}, {versions}"
    )


def environment(plan: Plan) -> str:
    clock = "processor time" if plan.processor else "by the clock"
    return (
        f"{machine(plan.threads)}; {plan.rounds} rounds of {plan.seconds:g} s ({clock}), "
        f"sets of processes: {plan.sets}, seed {plan.seed}; load of the machine at the start {os.getloadavg()[0]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(WORKLOADS), help="this workload alone")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--sets", type=int, help="of processes that share the rounds")
    parser.add_argument("--seconds", type=float, help="of a block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor", action="store_true", help="processor time instead of the clock's")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one round of a few steps: does everything run?")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    plan = Plan(
        rounds=given.rounds or (1 if given.quick else 21 if given.write else 5),
        sets=given.sets or (3 if given.write else 1),
        seconds=given.seconds or (0.01 if given.quick else 0.5),
        warm_up=2 if given.quick else None,
        threads=given.threads,
        processor=given.processor,
    )
    head = environment(plan)
    print(head, flush=True)
    if os.getloadavg()[0] > 0.5 and not plan.processor:
        print("other work runs on this machine: these timings mean little; try --processor", flush=True)
    arms = available(ARMS)
    found, tables = {}, []
    for workload in WORKLOADS if given.only is None else (given.only,):
        found[workload] = measure(workload, arms, plan)
        tables += [*table(workload, found[workload]), ""]
        print("\n".join(table(workload, found[workload])), flush=True)
    keeps = given.write and given.only is None
    if keeps:
        write(Path(__file__).parent, head, tables, [], found, {})
    if not (given.growth or given.write):
        return
    few = replace(plan, rounds=max(1, plan.rounds // 3), sets=1)
    rows, series = grown(
        few, {kind: (title, sizes[:2]) for kind, (title, sizes) in GROWTH.items()} if given.quick else GROWTH
    )
    if keeps:
        said = (
            f"{few.rounds} rounds, and no second bare process beside them: what lies within ± 30 % tells nothing here. "
            "Blocks are shorter than the time over which one probe of many layers is earned."
        )
        write(Path(__file__).parent, head, tables, ["### As networks grow", "", said, "", *rows, ""], found, series)


def write(
    folder: Path,
    head: str,
    tables: list[str],
    growth: list[str],
    found: dict[str, dict[str, Measured]],
    series: Series,
) -> None:
    """The committed table and picture."""
    text = [
        "# What a watch costs",
        "",
        "`python benchmarks/overhead.py --write` makes this file; what the columns mean stands in its docstring.",
        "",
        head,
        "",
        f"![Overhead by arm{', and as networks grow' if growth else ''}](overhead.svg)",
        "",
        *tables,
        *(growth or ["Not measured here: growth with layers, width and batch.", ""]),
    ]
    (folder / "overhead.md").write_text("\n".join(text))
    dots = {
        arm: {
            WORKLOADS[workload]: arms[arm].overhead(total=arm in BUDGETED)
            for workload, arms in found.items()
            if arm in arms
        }
        for arm in ARMS
        if arm != "bare"
    }
    (folder / "overhead.svg").write_text(picture(dots, series))


if __name__ == "__main__":
    main()
