from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError, StatisticError
from holdfast.live.snapshot import Snapshot
from holdfast.measures.spike_replay import Split, replay_spike

mse = nn.functional.mse_loss


def batches(count, generator, n=64):
    """y = Σ x, with noise: what the model below has learnt."""
    for _ in range(count):
        x = torch.randn(n, 6, generator=generator)
        yield x, x.sum(1, keepdim=True) + 0.3 * torch.randn(n, 1, generator=generator)


@pytest.fixture
def case():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Dropout(0.0), nn.Linear(8, 1, bias=False))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for batch in batches(300, generator):
        optimizer.zero_grad()
        mse(model(batch[0]), batch[1]).backward()
        optimizer.step()
    return model, optimizer, list(batches(6, generator))


def test_a_bad_batch(case):
    model, optimizer, usual = case
    held = Snapshot(model, optimizer)
    x, y = usual[0]
    told = replay_spike(model, held, (x, y + 3), usual[1:], mse)
    assert told.origin == "data"
    assert told.loss.data == pytest.approx(told.loss.total) == pytest.approx(math.log(9 / 0.09), abs=0.6)
    assert (told.loss.parameters, told.usual) == (0.0, 5)
    assert told.gradient.data > 1


def test_a_spoilt_model(case):
    model, optimizer, usual = case
    held = Snapshot(model, optimizer)
    with torch.no_grad():
        model[2].weight *= 3
    told = replay_spike(model, held, usual[0], usual[1:], mse)
    assert told.origin == "parameters"
    assert abs(told.loss.data) <= told.noise * 2
    assert told.loss.parameters > 2


def test_a_batch_that_is_bad_under_these_parameters_alone(case):
    """A direction of the input that the held weights ignore and the present ones enlarge."""
    model, optimizer, _ = case
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model[0].weight[:, 5] = 0.0
    held = Snapshot(model, optimizer)
    with torch.no_grad():
        model[0].weight[:, 5] = 4.0

    def without(batch):
        x = batch[0].clone()
        x[:, 5] = 0.0
        return x, x.sum(1, keepdim=True) + 0.3 * torch.randn(64, 1, generator=generator)

    usual = [without(batch) for batch in batches(6, generator)]
    x, y = usual[0]
    odd = x.clone()
    odd[:, 5] = 2.0
    told = replay_spike(model, held, (odd, y), usual[1:], mse)
    assert told.origin == "interaction"
    assert told.loss.parameters == pytest.approx(0.0, abs=1e-6)


def test_the_parts_add_up_to_the_losses(case):
    model, optimizer, usual = case
    held = Snapshot(model, optimizer)
    x, y = usual[0]
    with torch.no_grad():
        before = [float(mse(model(a), b)) for a, b in [(x, y + 1), *usual[1:]]]
        model[2].weight *= 1.5
        now = [float(mse(model(a), b)) for a, b in [(x, y + 1), *usual[1:]]]
    told = replay_spike(model, held, (x, y + 1), usual[1:], mse)
    level = math.log(sorted(before[1:])[2])
    assert told.loss.total == pytest.approx(math.log(now[0]) - level, abs=1e-5)
    assert told.loss.data == pytest.approx(math.log(before[0]) - level, abs=1e-5)
    assert told.loss.parameters == pytest.approx(math.log(sorted(now[1:])[2]) - level, abs=1e-5)
    table = told.table(17)
    assert (table.rows, table.columns) == (("loss", "gradient norm"), ("data", "parameters", "interaction"))
    assert (table.values[0], table.step, table.n, table.unit) == (tuple(told.loss), 17, 5, "nats")


def test_no_spike(case):
    model, optimizer, usual = case
    told = replay_spike(model, Snapshot(model, optimizer), usual[0], usual, mse)
    assert told.origin == "none"
    assert Split(1.0, 2.0, -0.5).total == 2.5


def test_nothing_is_changed(case):
    model, optimizer, usual = case
    held = Snapshot(model, optimizer)
    with torch.no_grad():
        model[2].weight *= 2
    model[1].p = 0.5
    tensors = [*model.parameters(), *(each.grad for each in model.parameters())]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    copies, versions = [each.detach().clone() for each in tensors], [each._version for each in tensors]
    state = torch.get_rng_state()
    first = replay_spike(model, held, usual[0], usual[1:], mse)
    assert replay_spike(model, held, usual[0], usual[1:], mse) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, tensors, copies))
    assert [each._version for each in tensors] == versions


def test_bad_input(case):
    model, optimizer, usual = case
    held = Snapshot(model, optimizer)
    with pytest.raises(InputError, match=re.escape("3 usual batches or more, to compare the spike's with; got 2")):
        replay_spike(model, held, usual[0], usual[:2], mse)
    with pytest.raises(InputError, match="a snapshot of this model"):
        replay_spike(nn.Linear(6, 1), held, usual[0], usual[1:], mse)
    with pytest.raises(StatisticError, match="losses that are finite and above zero"):
        replay_spike(model, held, (usual[0][0], usual[0][1] * math.inf), usual[1:], mse)
