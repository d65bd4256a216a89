"""Does "auto" keep its budget of 1 %? By the clock, each workload in one process.

    python benchmarks/budget.py [--only mlp3] [--seconds 120] [--block 0.03] [--budget 0.01] [--threads 2] [--write]

Two processes that train the same network differ by some per cent, by where their memory lies: no comparison between
processes resolves 1 %. So here one process trains one network, in turn for `--block` seconds as it is and for as many
steps with everything of ours taken off (hooks of the model, of the optimiser and of torch, and what stands in for the
backward pass) and put back after: seconds in all over seconds in all, with a 95 % bootstrap interval over the pairs.
The first 201 steps, in which the watch settles, are left out.

Where the bare block took more than twice the median of the 50 around it, the machine was elsewhere, and the pair is
left out; in the other block such a stop is taken for ours.

"nothing" is the same with a bare loop in place of the watch: what it seems to cost is what this machine cannot resolve.
What is not seen so: that the libraries lie in memory ("libraries only" in `overhead.py`), and what the store's thread
does while everything is off; the watch's own account, told beside, has all of it. `--write` makes `budget.md`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from overhead import WORKLOADS, judged, machine
from parts.arm import SETTLING
from parts.monitors import bare, ours
from parts.workloads import workload
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer, optimizer

ARMS = ("nothing", "auto")
AROUND = 50
"""Pairs among which a bare block is an odd one."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one arm took.

    Args:
        watched: seconds of each block as it is.
        off: of the block beside it with everything taken off.
        steps: of a block.
        account: the watch's own, as it is written at the end; empty without a watch.
    """

    watched: NDArray[np.float64]
    off: NDArray[np.float64]
    steps: int
    account: dict[str, Any]

    @property
    def calm(self) -> NDArray[np.intp]:
        """The pairs in whose bare block the machine did not stop."""
        parts = np.array_split(self.off, math.ceil(len(self.off) / AROUND))
        return np.flatnonzero(np.concatenate([part <= 2 * np.median(part) for part in parts]))

    def overhead(self) -> tuple[float, float, float]:
        """In per cent, with the ends of the 95 % bootstrap interval over pairs of blocks."""

        def ratio(pairs: NDArray[np.intp]) -> float:
            return float(self.watched[pairs].sum() / self.off[pairs].sum())

        draws = np.random.default_rng(0).choice(self.calm, (1000, len(self.calm)))
        low, high = np.percentile([ratio(each) for each in draws], (2.5, 97.5))
        return tuple(float(100 * each - 100) for each in (ratio(self.calm), low, high))

    @property
    def step(self) -> float:
        """Seconds of a bare one."""
        return float(np.median(self.off)) / self.steps


def hook_tables(model: nn.Module, stepper: Optimizer) -> list[dict[int, Any]]:
    """Where PyTorch keeps the hooks of a model, of an optimiser, and of all optimisers."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return [
        stepper._optimizer_step_pre_hooks,
        stepper._optimizer_step_post_hooks,
        optimizer._global_optimizer_pre_hooks,
        optimizer._global_optimizer_post_hooks,
        *(getattr(module, kind) for module in model.modules() for kind in kinds),
    ]


@contextmanager
def off(model: nn.Module, stepper: Optimizer) -> Iterator[None]:
    """Take all hooks off, and what stands in for the backward pass; put them back after."""
    kept = [(table, dict(table)) for table in hook_tables(model, stepper) if table]
    backward = torch.autograd.backward
    for table, _ in kept:
        table.clear()
    torch.autograd.backward = getattr(backward, "__wrapped__", backward)
    try:
        yield
    finally:
        torch.autograd.backward = backward
        for table, hooks in kept:
            table.update(hooks)


def measure(key: str, arm: str, *, seconds: float, long: float, budget: float, seed: int = 0) -> Found:
    """Train a workload, watched and not in turn.

    Args:
        key: of the workload.
        arm: one of `ARMS`.
        seconds: in all, after settling.
        long: seconds of a block, about.
        budget: of the watch.
        seed: of weights, data, and which block of a pair comes first.
    """
    torch.manual_seed(seed)
    order = random.Random(seed)
    chosen = workload(key)
    model, data = chosen.build(), itertools.cycle(chosen.batches())
    stepper = torch.optim.SGD(model.parameters(), lr=0.01)

    def block(count: int) -> float:
        begin = time.perf_counter()
        for inputs, labels in itertools.islice(data, count):
            stepper.zero_grad()
            F.cross_entropy(model(inputs).flatten(0, -2), labels).backward()
            stepper.step()
        return time.perf_counter() - begin

    def without(count: int) -> float:
        with off(model, stepper):
            return block(count)

    taken: dict[Callable[[int], float], list[float]] = {block: [], without: []}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        run = Path(folder) / "run"
        watch: AbstractContextManager[Any] = bare(model, stepper, chosen.draw(), run)
        if arm == "auto":
            watch = ours(model, stepper, chosen.draw()[:64], run, budget=budget)
        with watch:
            block(SETTLING)
            steps = max(1, round(10 * long / without(10)))
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                for each in order.sample(list(taken), 2):
                    taken[each].append(each(steps))
        return Found(np.array(taken[block]), np.array(taken[without]), steps, account(run) if arm == "auto" else {})


def account(folder: Path) -> dict[str, Any]:
    """What a watch itself says that it took."""
    import holdfast as hf

    with hf.Run(folder) as run:
        return dict(run.history.events("cadence")[-1].data)


def row(key: str, arm: str, found: Found, budget: float) -> str:
    """A row of the table."""
    value, low, high = found.overhead()
    cells = [
        WORKLOADS[key],
        arm,
        f"{1e3 * found.step:.3f}",
        f"{len(found.calm)} of {len(found.off)}",
        f"{value:+.2f} [{low:+.2f}, {high:+.2f}]",
    ]
    if found.account:
        cells.append(judged(100 * budget, low, value, high, arm))
        cells.append(f"{100 * found.account['settled']:.2f}")
        cells += [f"{found.account[part]} of {found.account['steps']}" for part in ("observed", "probed")]
    else:
        cells += [""] * 4
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(WORKLOADS), help="this workload alone")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each workload, half of them watched")
    parser.add_argument("--block", type=float, default=0.03, help="seconds, about")
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    head = [
        f"{machine(given.threads)}; {given.seconds:g} s a row, blocks of {given.block:g} s, seed 0; "
        f"load of the machine at the start {os.getloadavg()[0]:.1f}",
        "",
        "| workload | watch | bare, ms a step | pairs of blocks | overhead, % [95 %] | budget, % "
        "| by its own account, % | statistics | probes |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    print("\n".join(head), flush=True)
    rows = []
    for key in WORKLOADS if given.only is None else (given.only,):
        for arm in ARMS:
            found = measure(key, arm, seconds=given.seconds, long=given.block, budget=given.budget)
            rows.append(row(key, arm, found, given.budget))
            print(rows[-1], flush=True)
    if given.write and given.only is None:
        text = [
            "# Does auto keep its budget?",
            "",
            "`python benchmarks/budget.py --write` makes this file; what is measured stands in its docstring.",
            "",
            *head,
            *rows,
            "",
        ]
        (Path(__file__).parent / "budget.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
