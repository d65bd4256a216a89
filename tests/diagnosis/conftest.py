"""Runs in memory, written reading by reading: what a rule sees, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from torch import nn
from torch.optim import Optimizer

from holdfast.core.event import Event
from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Phase, Port, Site
from holdfast.core.structure import Group, ModuleNode, ParameterNode, Structure
from holdfast.live.replay import record_call
from holdfast.live.structure import extract
from holdfast.stats.channels import ChannelMoments
from holdfast.store.memory import MemoryRun

UNITS = {
    "parameter-drift": "reference SD",
    "gradient-norm": "L2 norm",
    "weight-norm": "L2 norm",
    "update-ratio": "ratio",
    "saturated-fraction": "fraction",
    "dead-units": "fraction",
    "collapsed-features": "fraction",
    "signal-spread": "ratio",
    "batch-noise": "reference SD",
    "train-eval-gap": "reference SD",
    "running-lag": "reference SD",
}


@dataclass
class Script:
    """A run under construction, step by step."""

    run: MemoryRun = field(default_factory=lambda: MemoryRun("script"))
    readings: dict[int, list[Reading]] = field(default_factory=dict)
    channels: dict[int, dict[Site, ChannelMoments]] = field(default_factory=dict)
    values: dict[int, dict[str, float]] = field(default_factory=dict)
    events: dict[int, list[Event]] = field(default_factory=dict)

    def add(
        self,
        measure: str,
        module: str,
        values: Iterable[float],
        *,
        port: Port = "input",
        phase: Phase = "train",
        leaf: str = "",
        n: int = 64,
        floor: float | None = None,
        lag: int | None = None,
        every: int = 1,
        first: int = 1,
    ) -> Script:
        """A measure's readings at one site, one every few steps."""
        site = Site(module, port, leaf=leaf, phase=phase)
        for index, value in enumerate(map(float, values)):
            step = first + index * every
            interval = None if floor is None else (0.9 * value, 1.1 * value)
            reading = Reading(measure, site, step, value, UNITS[measure], n, floor, interval, lag)
            self.readings.setdefault(step, []).append(reading)
        return self

    def drift(self, module: str, values: Iterable[float], floor: float = 0.01, lag: int = 1, **more: object) -> Script:
        phase = "train" if lag == 1 else "probe"
        return self.add("parameter-drift", module, values, floor=floor, lag=lag, phase=phase, **more)

    def gradients(self, norms: Mapping[str, float], steps: int = 6, weight: float = 1.0) -> Script:
        """The same norms at every step, of the signal and of the weights."""
        for module, norm in norms.items():
            self.add("gradient-norm", module, [norm] * steps, port="grad_output")
            self.add("gradient-norm", module, [norm] * steps, port="weight_grad", leaf="weight")
            self.add("weight-norm", module, [weight] * steps, port="weight", leaf="weight")
        return self

    def signal(
        self,
        module: str,
        mean: Sequence[float],
        sd: Sequence[float],
        *,
        n: int = 64,
        zeros: float = 0.0,
        steps: int = 6,
    ) -> Script:
        """Channels of a module's input, the same at every step."""
        count = np.full(len(mean), float(n))
        moments = ChannelMoments(count, np.array(mean), count * np.array(sd) ** 2, count * zeros)
        for step in range(1, steps + 1):
            self.channels.setdefault(step, {})[Site(module, "input")] = moments
        return self

    def series(self, name: str, values: Iterable[float]) -> Script:
        for step, value in enumerate(values, 1):
            self.values.setdefault(step, {})[name] = float(value)
        return self

    def event(self, event: Event) -> Script:
        self.events.setdefault(event.step, []).append(event)
        return self

    def layers(
        self, *modules: str, kind: str = "Linear", source: str | None = "", not_seen: tuple[str, ...] = ()
    ) -> Script:
        """A structure: a chain of layers with weights."""
        nodes = [
            ModuleNode(
                path,
                kind,
                (kind,),
                True,
                (
                    ParameterNode(f"{path}.weight", (8, 8), "float32", True),
                    ParameterNode(f"{path}.bias", (8,), "float32", True),
                ),
            )
            for path in modules
        ]
        edges = [] if source is None else list(zip((source, *modules), modules, strict=False))
        names = tuple(parameter.name for node in nodes for parameter in node.parameters)
        group = Group({"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}, names)
        self.run.describe(
            Structure(
                "net",
                "Net",
                tuple(nodes),
                modules,
                tuple(edges),
                optimiser="SGD",
                groups=(group,),
                not_seen=not_seen,
            )
        )
        return self

    @property
    def history(self) -> MemoryRun:
        for step in sorted({*self.readings, *self.channels, *self.values, *self.events}):
            self.run.write(
                StepRecord(
                    step,
                    values=self.values.get(step, {}),
                    channels=self.channels.get(step, {}),
                    readings=tuple(self.readings.get(step, ())),
                    events=tuple(self.events.get(step, ())),
                )
            )
        return self.run


@pytest.fixture
def script() -> Callable[[], Script]:
    """Begin a run."""
    return Script


@pytest.fixture
def described() -> Callable[..., MemoryRun]:
    """A run of which nothing is known but a real model's structure."""

    def describe(model: nn.Module, *inputs: object, optimizer: Optimizer | None = None) -> MemoryRun:
        run = MemoryRun("described")
        run.describe(extract(model, optimizer, call=record_call(inputs, {}) if inputs else None))
        return run

    return describe
