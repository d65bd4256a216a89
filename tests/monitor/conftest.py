from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

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
