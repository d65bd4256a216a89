"""What holds for every measure that a watch can be asked for: it gives figures, and leaves no trace in the training."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.measures import QUANTITIES, WATCHABLE
from holdfast.monitor.watch import Watch
from holdfast.store.memory import MemoryRun

NEEDS_CURVLINOPS = {"sharpness", "stability-ratio", "hessian-trace", "curvature-spread", "gauss-newton-condition"}
SINGULAR = {"gauss-newton-condition"}
"""No figure where the model has more parameters than the batch has outputs: the smallest eigenvalue is zero."""

STEPS, EVERY = 3, 2


class Mixed(nn.Module):
    """A part for each measure: a normaliser, gates, attention, streams that meet, functions, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.fuse = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.norm(self.embed(x).transpose(1, 2)).transpose(1, 2).sigmoid()
        hidden, _ = self.lstm(embedded)
        attended, _ = self.attention(hidden, hidden, hidden, need_weights=False)
        return self.head(self.drop(self.fuse(hidden + attended).relu()).mean(1))


def train(names: tuple[str, ...]) -> tuple[nn.Module, MemoryRun, tuple[Tensor, float, float]]:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    held = torch.randn(24, 5, 3), torch.randint(0, 2, (24,))
    run = MemoryRun()
    watch = Watch(
        model, optimizer, lambda: run, name="test", every=EVERY, measures=names, batch=held, loss_fn=F.cross_entropy,
        strict=True,
    )  # fmt: skip
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(64, 5, 3)), torch.randint(0, 2, (64,))).backward()
        optimizer.step()
    watch.close()
    return model, run, (torch.rand(3), random.random(), np.random.rand())


@pytest.fixture(scope="module")
def unasked() -> tuple[nn.Module, MemoryRun, tuple[Tensor, float, float]]:
    return train(())


@pytest.mark.parametrize("name", sorted(WATCHABLE))
def test_it_gives_figures_and_leaves_no_trace(name, unasked):
    if name in NEEDS_CURVLINOPS:
        pytest.importorskip("curvlinops", reason="the extra `landscape` is not installed")
    model, run, drawn = train((name,))
    plain, before, expected = unasked
    state, reference = model.state_dict(), plain.state_dict()
    assert all(torch.equal(state[key], reference[key]) for key in reference)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), plain.parameters(), strict=True)), (
        "gradients"
    )
    assert model.training
    assert torch.equal(drawn[0], expected[0])
    assert drawn[1:] == expected[1:]
    told = {*run.measures()} - {*before.measures()}
    tables = {table.measure for record in run._records for table in record.tables}
    figures = len(run.readings(name)) > len(before.readings(name)) or name in tables or bool(told)
    assert figures != (name in SINGULAR), f"{name} gave nothing"
    assert told <= set(QUANTITIES) | set(WATCHABLE)
    assert not [event for event in run.events("monitor-error") if name in event.message]
