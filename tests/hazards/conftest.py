from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from holdfast.store.memory import MemoryRun


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
