"""Steps that pass unseen: what is left on meanwhile, and how they are counted."""

import functools

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F

from holdfast.monitor.cadence import Cadence

BACKWARD, SCALE, UPDATE = torch.autograd.backward, GradScaler.scale, GradScaler.update


@pytest.fixture
def rested(record, monkeypatch):
    """A model, its optimiser, and what is recorded of it, which rests for 5 steps from the 3rd on and from the 9th."""
    monkeypatch.setattr(Cadence, "rest", lambda self, step: 5 if step in (3, 9) else 0)
    monkeypatch.setattr(Cadence, "wants", lambda self, step: False)

    def begin(make=torch.optim.SGD):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = make(model.parameters(), lr=0.1)
        recording = record(model, optimizer, every="auto")
        step(model, optimizer)
        step(model, optimizer)
        assert recording.watch._resting == 5
        return model, optimizer, recording

    return begin


def step(model, optimizer):
    optimizer.zero_grad()
    F.cross_entropy(model(torch.randn(32, 6)), torch.randint(0, 3, (32,))).backward()
    optimizer.step()


def test_nothing_stands_in_for_torchs_functions_meanwhile(rested):
    model, optimizer, recording = rested()
    for _ in range(5):
        assert (torch.autograd.backward, GradScaler.scale, GradScaler.update) == (BACKWARD, SCALE, UPDATE)
        assert not model._forward_pre_hooks
        step(model, optimizer)
    assert torch.autograd.backward is not BACKWARD
    step(model, optimizer)
    history = recording.close()
    assert history.values("loss")[0].tolist() == [1, 2, 8]
    assert torch.autograd.backward is BACKWARD


def test_who_wrapped_the_backward_pass_before_the_rest_stays_and_no_loss_is_heard_twice(rested, monkeypatch):
    model, optimizer, recording = rested()
    for _ in range(5):
        step(model, optimizer)
    ours = torch.autograd.backward
    heard = []
    monkeypatch.setattr(torch.autograd, "backward", lambda *args, **kwargs: (heard.append(1), ours(*args, **kwargs)))
    theirs = torch.autograd.backward
    for _ in range(7):
        step(model, optimizer)
        assert torch.autograd.backward is theirs
    optimizer.zero_grad()
    loss = F.cross_entropy(model(torch.randn(32, 6)), torch.randint(0, 3, (32,)))
    loss.backward()
    optimizer.step()
    steps, values = recording.close().values("loss")
    assert steps.tolist() == [1, 2, 8, 14, 15]
    assert values[-1] == pytest.approx(loss.item())
    assert len(heard) == 8


def test_an_optimiser_within_another_counts_once(rested):
    class Wrapping(torch.optim.SGD):
        def __init__(self, parameters, lr):
            super().__init__(parameters, lr)
            self.base = torch.optim.SGD(self.param_groups[0]["params"], lr)

        def step(self, closure=None):
            self.base.step()

    model, optimizer, recording = rested(Wrapping)
    recording.watch.follow(optimizer.base)
    for _ in range(5):
        step(model, optimizer)
    assert recording.watch.step == 7
    assert recording.watch._resting == 0


def test_a_value_logged_within_a_step_ends_the_rest_and_belongs_to_that_step(rested):
    model, optimizer, recording = rested()
    step(model, optimizer)
    optimizer.register_step_pre_hook(lambda *_: recording.watch.log(mine=3.0))
    step(model, optimizer)
    history = recording.close()
    assert history.steps == 4
    assert [each.tolist() for each in history.values("mine")] == [[4], [3.0]]
    assert history.values("loss")[0].tolist() == [1, 2]  # which passed unheard


def test_a_step_that_a_gradient_scaler_lets_fall_is_not_counted(rested):
    model, optimizer, recording = rested(functools.partial(torch.optim.SGD, fused=True))
    optimizer.found_inf = torch.tensor(1.0)
    step(model, optimizer)
    assert (recording.watch.step, recording.watch._resting) == (2, 5)
    del optimizer.found_inf
    step(model, optimizer)
    assert (recording.watch.step, recording.watch._resting) == (3, 4)
