"""A run as a suffering network leaves it: ten sigmoid layers that drift, saturate and lose their gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from holdfast.core.event import Event
from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.structure import Group, ModuleNode, ParameterNode, Structure
from holdfast.core.units import Unit
from holdfast.stats.observation import observe
from holdfast.store.memory import MemoryRun

NASTY = """<script>alert(1)</script>"'/x"""


def leaves(depth: int) -> list[tuple[str, str]]:
    """(path, kind) of `depth` pairs of a linear and a sigmoid layer."""
    return [
        (f"layers.{2 * index + offset}", kind)
        for index in range(depth)
        for offset, kind in enumerate(("Linear", "Sigmoid"))
    ]


def structure(modules: list[tuple[str, str]], stream: str = "net") -> Structure:
    nodes = [ModuleNode("", "Sequential", ("Sequential",), leaf=False)]
    for path, kind in modules:
        weights = (ParameterNode(f"{path}.weight", (64, 64), "float32", True, 0),) if kind == "Linear" else ()
        nodes.append(ModuleNode(path, kind, (kind,), leaf=True, parameters=weights, calls=1))
    order = tuple(path for path, _ in modules)
    groups = (Group({"lr": 1.0, "momentum": 0}, tuple(f"{path}.weight" for path, kind in modules if kind == "Linear")),)
    edges = tuple(zip(("", *order), order, strict=False))
    return Structure(stream, "Sequential", tuple(nodes), order, edges, optimiser="SGD", groups=groups)


def make_run(
    modules: list[tuple[str, str]] | None = None,
    *,
    steps: int = 400,
    every: int = 3,
    stream: str = "net",
    seed: int = 0,
) -> MemoryRun:
    """A run with every kind of record, its figures drawn from a seed."""
    modules = leaves(10) if modules is None else modules
    numbers = np.random.default_rng(seed)
    torch.manual_seed(seed)
    run = MemoryRun("runs/demo")
    run.describe(structure(modules, stream))
    width = min(len(modules), 12)
    summarised = {modules[round(at)][0] for at in np.linspace(0, len(modules) - 1, width)}
    exponents: dict[Site, int] = {}
    for step in range(1, steps + 1):
        progress = step / steps
        loss = 2.3 - 0.4 * progress + 0.08 * numbers.normal()
        values = {
            "loss": loss,
            "gradient-norm": 0.5 * np.exp(-2 * progress + 0.3 * numbers.normal()),
            "learning-rate": 1.0,
        }
        readings: list[Reading] = []
        summaries = {}
        channels = {}
        if step % every == 0 or step == 1:
            for depth, (path, kind) in enumerate(modules):
                place = Site(path, "input", stream=stream)
                readings += _readings(place, kind, step, depth, len(modules), numbers)
                if path in summarised and len(summarised) and (step % (every * 4) == 0 or step == 1):
                    spread = 1 + 4 * progress * depth / len(modules)
                    block = torch.randn(64, 8, 1) * spread + depth / len(modules) * 3 * progress
                    if kind == "Linear" and depth:
                        block = block.relu()
                    seen = observe(block, exponent=exponents.get(place), threshold=4.357)
                    exponents.setdefault(place, seen.summary.sketch.exponent)
                    summaries[place] = seen.summary
                    channels[place] = seen.channels
        events: tuple[Event, ...] = ()
        if step == steps // 2:
            events = (Event(step, "alarm", "gradient norm 8 times its running median"),)
        if step == steps:
            data = {"overhead": 0.031, "seconds": {"run": 12.0, "hooks": 0.2, "probes": 0.1}}
            events = (Event(step, "cadence", f"observed {steps // every} of {steps} steps; took 3.1%", data=data),)
        run.write(StepRecord(step, stream, values, summaries, channels, tuple(readings), events=events))
    return run


def _readings(place: Site, kind: str, step: int, depth: int, total: int, numbers: np.random.Generator) -> list[Reading]:
    sd, ratio = Unit.REFERENCE_SD, Unit.RATIO
    deep = depth / total
    drift = 0.0 if depth == 0 else float(0.02 * np.exp(3 * deep + 0.3 * numbers.normal()) * (1.2 - step / 500))
    floor = 0.02 + 0.01 * numbers.random()
    probe = place.at(phase="probe")
    output, gradient = place.at(port="output"), place.at(port="grad_output")
    found = [
        Reading("parameter-drift", place, step, drift, sd, 64, floor, (0.8 * drift, 1.25 * drift), lag=1),
        Reading("observed-drift", place, step, 0.25 + drift, sd, 64, 0.31, lag=3),
        Reading("backward-gain", gradient, step, float(np.exp(-0.5 + 0.2 * numbers.normal())), ratio, 64,
                interval=(0.3, 1.1)),
    ]  # fmt: skip
    if depth:
        found.append(Reading("drift-gain", output, step, float(np.exp(0.15 + 0.1 * numbers.normal())), ratio, 64,
                             interval=(0.9, 1.5), lag=1))  # fmt: skip
    if step > 100:
        far = 8 * drift
        found.append(Reading("parameter-drift", probe, step, far, sd, 128, floor, (0.9 * far, 1.1 * far), lag=100))
    if kind == "Sigmoid":
        found.append(Reading("saturated-fraction", place, step, min(0.9, 0.2 + deep * step / 400), Unit.FRACTION, 4096))
    found.append(Reading("collapsed-features", place, step, 0.0, Unit.FRACTION, 64))
    return found


@pytest.fixture(scope="session")
def run() -> MemoryRun:
    """400 steps of twenty layers."""
    return make_run()


@pytest.fixture(scope="session")
def run_of() -> Callable[..., MemoryRun]:
    """Makes runs: `run_of(modules, steps=…, every=…)`."""
    return make_run


@pytest.fixture
def nasty_run() -> MemoryRun:
    """A layer whose name is an attack on the page."""
    return make_run([(NASTY, "Linear"), ("a" * 120, "Sigmoid"), ("$x^2$", "Linear"), ("%{y}", "Sigmoid")], steps=24)


@pytest.fixture
def empty_run() -> MemoryRun:
    """Nothing was observed."""
    return MemoryRun("runs/empty")
