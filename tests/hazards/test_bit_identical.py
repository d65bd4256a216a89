"""A watched model ends with the very weights of one that nobody watched."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


class Noisy(nn.Module):
    """Batch statistics, dropout as a module and as a function, spectral norm, Python's and NumPy's random numbers."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 2)), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x.view(-1, 3, 2, 2))), inplace=True)
        x = x * (1 + 0.1 * random.random() + 0.1 * np.random.rand())
        return self.head(F.dropout(self.drop(x.flatten(1)), 0.2, self.training))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.block = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.ReLU(inplace=True))
        self.tail = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
        self.reentrant = reentrant

    def forward(self, x):
        x = checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)
        return checkpoint_sequential(self.tail, 2, x, use_reentrant=self.reentrant)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(4, 8, num_layers=2, dropout=0.2, batch_first=True)
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.mix(self.cells(x.view(-1, 3, 4))[0])[:, -1])


def plainly(model, optimizer, data):
    for inputs, labels in data:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            model(inputs)
        model.train()


def under_autocast(model, optimizer, data):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    for step, (inputs, labels) in enumerate(data):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(inputs), labels)
        scaler.scale(loss * (torch.inf if step == 2 else 1)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()


def accumulating(model, optimizer, data):
    for step, (inputs, labels) in enumerate(data):
        (F.cross_entropy(model(inputs), labels) / 2).backward()
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()


def with_closures(model, optimizer, data):
    for inputs, labels in data:

        def closure(inputs=inputs, labels=labels):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            return loss

        optimizer.step(closure)


def of_sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def of_adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def of_lbfgs(model):
    return torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)


WORKLOADS = {
    "plain": (Plain, of_sgd, plainly),
    "noisy": (Noisy, of_sgd, plainly),
    "checkpointed": (lambda: Checkpointed(False), of_adam, plainly),
    "reentrant": (lambda: Checkpointed(True), of_adam, plainly),
    "recurrent": (Recurrent, of_adam, plainly),
    "autocast": (Noisy, of_adam, under_autocast),
    "accumulation": (Noisy, of_sgd, accumulating),
    "closures": (Plain, of_lbfgs, with_closures),
}


@pytest.mark.parametrize("workload", WORKLOADS)
# A reentrant checkpoint is told of by torch where the batch itself requires no gradient.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_watched_and_unwatched_weights_are_the_same_bits(record, workload):
    build, optimiser_of, loop = WORKLOADS[workload]

    def run(watched):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = build()
        optimizer = optimiser_of(model)
        data = [(torch.randn(16, 12), torch.randint(0, 3, (16,))) for _ in range(6)]
        probe = torch.randn(8, 12)
        recording = record(model, optimizer, probe=probe) if watched else None
        loop(model, optimizer, data)
        if recording is not None:
            history = recording.close()
            assert history.steps >= 3
            assert history.readings("parameter-drift", lag=1)
            assert not history.events("monitor-error")
        states = [
            value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
        ]
        generators = [
            torch.get_rng_state(),
            torch.tensor(random.getstate()[1]),
            torch.from_numpy(np.random.get_state()[1]),
        ]
        return [*model.state_dict().values(), *states, *generators]

    watched, bare = run(True), run(False)
    assert len(watched) == len(bare)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(watched, bare, strict=True))
