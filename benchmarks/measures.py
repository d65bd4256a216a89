"""What a measure costs, in forward-backward passes of the model that it measures, and how that grows with depth.

    python benchmarks/measures.py [--rounds 7] [--only gradient-ics] [--threads 2] [--processor] [--write]

A case is a measure on a network. Each round times, one after the other, a forward-backward pass (loss and `backward()`,
several in a row), the measure, and, where there is one, the way to the same figures without us; the order alternates.
Cost is the measure's time over the pass's, the median over rounds with a 95 % bootstrap interval; speed-up is the other
way's time over the measure's. The allocator keeps what is freed (else much of the time of all three goes
into page faults of what they allocate). `error` is the greatest difference between the two ways' figures, relative to
the figure. `--processor` takes for a clock the processor time of all threads of the process, for a machine that others
use too. `--write` puts the tables and the environment in `benchmarks/measures.md`.

"In a watch" are measures as a watch takes them at one step that it was asked for them: everything they do, statistics
included.

Gradient ICS by hand is a full forward and a full `backward()` for every layer, with the layers before it updated in
place, and one at the parameters before the update. The bar: at least 2.3 times faster than that on 20 equal layers.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast import measures
from holdfast.core.reading import Table
from holdfast.live.moment import Moment
from holdfast.live.replay import record_call
from holdfast.live.structure import extract

WATCHED = (
    "attribution",
    "shape-shift",
    "scale-shift-p95",
    "sliced-wasserstein",
    "mmd",
    "gradient-snr",
    "update-alignment",
    "rotation",
    "saturated-fraction",
    "effective-rank",
    "stream-share",
    "stream-gradient",
    "landscape",
    "sharpness",
    "hessian-trace",
)
"""One of each kind: those left out are other figures of the same passes."""

PASSES = 3
"""Passes in a row that make one timing: a single one is shorter than the machine's hiccups."""


@dataclass(frozen=True)
class Network:
    """A model to measure, with a batch and the update of one step."""

    name: str
    model: nn.Module
    batch: tuple[Any, Tensor]
    update: Mapping[str, Tensor]

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, of every position where there are some."""
        return F.cross_entropy(output.flatten(0, -2), targets.flatten())

    def one_pass(self) -> None:
        """Forward and full backward."""
        self.model.zero_grad()
        self.loss(self.model(self.batch[0]), self.batch[1]).backward()


@dataclass(frozen=True)
class Case:
    """One line of the table: a measure on a network, and the way to the same figures without us."""

    measure: str
    network: Network
    run: Callable[[Network], object]
    by_hand: Callable[[Network], object] | None = None
    differ: Callable[[Any, Any], float] | None = None
    bar: float | None = None
    """The least speed-up."""


# networks


class Residual(nn.Module):
    """Two convolutions with BatchNorm and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


class Transformer(nn.Module):
    """A pre-norm block, its layers registered in the order of execution."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def stepped(name: str, model: nn.Module, inputs: Any, targets: Tensor, rate: float = 0.1) -> Network:
    """The network with the update of an SGD step, which it has made."""
    network = Network(name, model, (inputs, targets), {})
    network.one_pass()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    torch.optim.SGD(model.parameters(), rate).step()
    return Network(name, model, (inputs, targets), {k: v.detach() - before[k] for k, v in model.named_parameters()})


def equal_layers(depth: int, width: int = 512, batch: int = 512) -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(depth)])
    return stepped(
        f"{depth} equal layers, {width} wide, batch {batch}",
        model,
        torch.randn(batch, width),
        torch.randint(width, (batch,)),
        rate=1.0,  # a step whose effect on gradients is far above rounding
    )


def residual(blocks: int = 12, width: int = 16, batch: int = 16, size: int = 16) -> Network:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, width, 3, padding=1)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    model = nn.Sequential(stem, *[Residual(width) for _ in range(blocks)], *head)
    name = f"residual CNN, {blocks} blocks, {width} channels, batch {batch} of 3 × {size} × {size}"
    return stepped(name, model, torch.randn(batch, 3, size, size), torch.randint(10, (batch,)))


def gpt(layers: int = 6, width: int = 128, length: int = 64, batch: int = 4) -> Network:
    torch.manual_seed(0)
    blocks = [Transformer(width, 4) for _ in range(layers)]
    model = nn.Sequential(nn.Embedding(65, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 65))
    ids = torch.randint(65, (batch, length + 1))
    return stepped(f"GPT, {layers} layers, d {width}, T {length}, batch {batch}", model, ids[:, :-1], ids[:, 1:])


# gradient ICS


def gradient_ics(network: Network) -> Table:
    return measures.gradient_ics(
        network.model, network.loss, network.batch, network.update, matched=(), debiased=False, repeatable=True
    )


def gradient_ics_with_variants(network: Network) -> Table:
    return measures.gradient_ics(network.model, network.loss, network.batch, network.update, repeatable=True)


def gradient_ics_by_hand(network: Network) -> list[float]:
    """‖G − G′‖ of the modules that hold parameters, which here run in the order of registration."""
    parameters = dict(network.model.named_parameters())
    after = {name: value.detach().clone() for name, value in parameters.items()}
    holders = [
        [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
        for path, module in network.model.named_modules()
    ]
    with torch.no_grad():
        for name, value in parameters.items():
            value -= network.update[name]
    network.one_pass()
    old = {name: value.grad for name, value in parameters.items()}
    found = []
    for names in filter(None, holders):
        network.one_pass()
        squares = [(parameters[name].grad - old[name]).square().sum() for name in names]
        found.append(float(torch.stack(squares).sum().sqrt()))
        with torch.no_grad():
            for name in names:
                parameters[name].copy_(after[name])
    return found


def difference(table: Table, by_hand: list[float]) -> float:
    """Greatest difference between the raw figures, of the figure."""
    pairs = zip((row[0] for row in table.values), by_hand, strict=True)
    return max(abs(a - b) / b for a, b in pairs if b > 1e-9)


# what a watch takes when it is asked to


def in_watch(name: str, network: Network) -> Case:
    """A measure at the step that the network has made."""
    inputs, call = network.batch[0], record_call((network.batch[0],), {})
    now = dict(network.model.named_parameters())
    moment = Moment(
        network.model,
        step=1,
        before={key: now[key].detach() - change for key, change in network.update.items()},
        call=call,
        batch=(inputs, network.batch[1]),
        loss_fn=network.loss,
        optimizer=torch.optim.SGD(network.model.parameters(), 0.1),
        structure=extract(network.model, call=call),
    )
    return Case(f"{name}, in a watch", network, lambda _: measures.WATCHABLE[name].start()(moment))


# timing


def clock(call: Callable[[], object], repeats: int, now: Callable[[], float]) -> float:
    start = now()
    for _ in range(repeats):
        call()
    return (now() - start) / repeats


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median, and the 95 % bootstrap interval of it."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.percentile(np.median(draws, 1), (2.5, 97.5))
    return float(np.median(values)), float(low), float(high)


def shown(values: np.ndarray) -> str:
    middle, low, high = interval(values)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def measure(case: Case, rounds: int, now: Callable[[], float]) -> str:
    """One row of the table."""
    network = case.network
    ways: list[tuple[Callable[[], object], int]] = [
        (network.one_pass, PASSES),
        (lambda: case.run(network), 1),
    ]
    if case.by_hand is not None:
        by_hand = case.by_hand
        ways.append((lambda: by_hand(network), 1))
    for call, _ in ways:
        call()
    times: list[list[float]] = [[] for _ in ways]
    for index in range(rounds):
        for which in range(len(ways)) if index % 2 else reversed(range(len(ways))):
            times[which].append(clock(*ways[which], now))
    a_pass, ours, *other = (np.array(each) for each in times)
    cells = [case.measure, network.name, f"{np.median(a_pass) * 1e3:.1f}", shown(ours / a_pass)]
    if other and case.by_hand is not None:
        speed = shown(other[0] / ours)
        met = "" if case.bar is None else " met" if np.median(other[0] / ours) >= case.bar else " **missed**"
        cells += [shown(other[0] / a_pass), speed, "" if case.bar is None else f"{case.bar:g}{met}"]
        cells.append("" if case.differ is None else f"{case.differ(case.run(network), case.by_hand(network)):.0e}")
    else:
        cells += [""] * 4
    return f"| {' | '.join(cells)} |"


def cases() -> list[Case]:
    ics = {"by_hand": gradient_ics_by_hand, "differ": difference}
    name = "gradient-ics"
    return [
        Case(name, equal_layers(20), gradient_ics, **ics, bar=2.3),
        Case(name, residual(), gradient_ics, **ics),
        Case(name, gpt(), gradient_ics, **ics),
        *(Case(name, equal_layers(depth, 256), gradient_ics, **ics) for depth in (5, 10, 20, 40)),
        Case(f"{name}, with two ρ and debiased", equal_layers(20, 256), gradient_ics_with_variants),
        *(in_watch(each, network) for network in (residual(), gpt(batch=16)) for each in WATCHED),
        in_watch("attention-entropy", gpt(batch=16)),
    ]


HEAD = (
    "| measure | network | a pass, ms | cost, passes [95 %] | by hand, passes | speed-up | bar | error |",
    "|---|---|---|---|---|---|---|---|",
)


def environment(rounds: int, processor: bool) -> str:
    return (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{'processor' if processor else 'wall-clock'} time, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {rounds} rounds, seed 0"
    )


def keep_memory() -> None:
    """Let glibc keep freed memory, as a process does whose heap other tensors hold."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="cases whose measure begins so")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor", action="store_true")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(given.threads)
    now = time.process_time if given.processor else time.perf_counter
    print("\n".join(HEAD), flush=True)
    rows = []
    for case in cases():
        if given.only is None or case.measure.startswith(given.only):
            rows.append(measure(case, given.rounds, now))
            print(rows[-1], flush=True)
    if given.write:
        note = "`python benchmarks/measures.py --write` makes this file; what the columns mean stands in its docstring."
        text = ["# What measures cost", "", note, "", environment(given.rounds, given.processor), "", *HEAD, *rows, ""]
        Path(__file__).with_suffix(".md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
