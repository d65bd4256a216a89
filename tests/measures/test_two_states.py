from __future__ import annotations

import pytest
import torch
from torch import nn

from holdfast.live.moment import Moment
from holdfast.live.replay import record_call
from holdfast.measures import WATCHABLE
from holdfast.measures.parameter_drift import parameter_drift
from holdfast.measures.two_states import over_two_states

ASKED = ["shape-shift", "scale-shift-p95", "sliced-wasserstein", "mmd"]


def network():
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
    )


def state(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {name: each.detach().clone() for name, each in tensors.items()}
    return kept, [each.grad.clone() for each in model.parameters() if each.grad is not None], torch.get_rng_state()


def same(a, b):
    return (
        all(torch.equal(a[0][name], b[0][name]) for name in a[0])
        and all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
        and torch.equal(a[2], b[2])
    )


@pytest.fixture
def moment():
    """A step of the middle layer alone."""
    model = network()
    call = record_call((torch.randn(32, 6),), {})
    model(*call.args).square().mean().backward()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    with torch.no_grad():
        model[3].weight += 0.2 * torch.randn(8, 8)
    return Moment(model, 7, before=before, call=call)


def test_only_what_comes_after_a_change_moves_and_nothing_is_left_behind(moment):
    held = state(moment.model)
    readings = over_two_states(moment, parameter_drift)
    assert same(held, state(moment.model))
    by_place = {(each.site.module, each.site.port): each for each in readings}
    before = [("0", "input"), ("0", "output"), ("1", "input"), ("1", "output"), ("3", "input")]
    assert [by_place[place].value for place in before] == [0.0] * 5
    assert by_place["3", "output"].value > 0.05
    assert {(each.step, each.lag, each.n) for each in readings} == {(7, 1, 32)}


@pytest.mark.parametrize("name", ASKED)
def test_what_a_watch_can_be_asked_for(moment, name):
    held = state(moment.model)
    readings = WATCHABLE[name].start()(moment)
    assert same(held, state(moment.model))
    assert WATCHABLE[name].needs == {"before", "call"}
    assert {each.measure for each in readings} == {name}
    still = [each for each in readings if each.site.module in ("0", "1")]
    assert [each.value for each in still] == pytest.approx([0.0] * len(still), abs=1e-12)
    moved = next(each for each in readings if (each.site.module, each.site.port) == ("3", "output"))
    assert moved.value > 0 or name == "mmd"  # which is unbiased, and may fall below


def test_agrees_with_the_step_probe(record):
    """The watch's own figure of the same thing, at every site and step (both read every element)."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    recording = record(model, optimizer, measures=["sliced-wasserstein", "shape-shift"])
    found = []
    for step in range(1, 4):
        call = record_call((torch.randn(32, 6),), {})
        before = {name: each.detach().clone() for name, each in model.named_parameters()}
        optimizer.zero_grad()
        model(*call.args).square().mean().backward()
        optimizer.step()
        found += over_two_states(Moment(model, step, before=before, call=call), parameter_drift)
    run = recording.close()
    theirs = {(each.step, each.site): each.value for each in run.readings("parameter-drift", lag=1)}
    ours = {(each.step, each.site): each.value for each in found}
    shared = ours.keys() & theirs.keys()
    assert len(shared) >= 3 * 8
    assert [ours[key] for key in shared] == pytest.approx([theirs[key] for key in shared], rel=1e-3, abs=1e-6)
    for name in ("sliced-wasserstein", "shape-shift"):
        assert {each.step for each in run.readings(name)} == {1, 2, 3}


def test_a_batch_that_was_changed_gives_nothing(moment):
    moment.call.args[0].add_(1.0)
    assert over_two_states(moment, parameter_drift) == []
