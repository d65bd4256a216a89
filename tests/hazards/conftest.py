from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.monitor.watch import Watch
from holdfast.store.memory import MemoryRun


class Recording:
    """A watch that records into memory."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, **options: object) -> None:
        self.run = MemoryRun()
        self.watch = Watch(model, optimizer, lambda: self.run, name="test", **{"every": 1, "strict": True, **options})

    def close(self) -> MemoryRun:
        self.watch.close()
        return self.run


@pytest.fixture
def record() -> Iterator[Callable[..., Recording]]:
    """Watch a model into memory; whatever a test leaves open is closed."""
    opened: list[Recording] = []

    def start(model: nn.Module, optimizer: torch.optim.Optimizer, **options: object) -> Recording:
        recording = Recording(model, optimizer, **options)
        opened.append(recording)
        return recording

    yield start
    for each in opened:
        each.watch.close()


@pytest.fixture
def train() -> Callable[..., None]:
    """A plain training loop over batches of inputs and labels."""

    def train(model: Any, optimizer: torch.optim.Optimizer, data: Any, loss_fn: Any = F.cross_entropy) -> None:
        for inputs, labels in data:
            optimizer.zero_grad()
            loss_fn(model(inputs), labels).backward()
            optimizer.step()

    return train


@pytest.fixture
def readings() -> Callable[..., dict[tuple[Any, ...], float]]:
    """Every reading of a run by measure, site, lag and step."""

    def readings(run: MemoryRun) -> dict[tuple[Any, ...], float]:
        return {
            (measure, str(each.site), each.lag, each.step): each.value
            for measure in run.measures()
            for each in run.readings(measure)
        }

    return readings
