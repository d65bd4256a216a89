import copy

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError, SurgeryError
from holdfast.treatments.decouple_decay import DecoupleDecay


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def step(model, optimizer):
    torch.manual_seed(1)
    optimizer.zero_grad()
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("settings", [{}, {"foreach": False}, {"amsgrad": True}, {"fused": True}])
@pytest.mark.parametrize("factor", [1.0, 30.0])
def test_steps_afterwards_are_those_of_adamw_from_the_same_state(settings, factor):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.02, **settings)
    for _ in range(3):
        step(model, optimizer)
    other = copy.deepcopy(model)
    rival = torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.02 * factor, **settings)
    rival.load_state_dict({**rival.state_dict(), "state": copy.deepcopy(optimizer.state_dict()["state"])})
    moments = [id(optimizer.state[each]["exp_avg"]) for each in model.parameters()]
    DecoupleDecay(factor).plan(model, optimizer).apply()
    assert [id(optimizer.state[each]["exp_avg"]) for each in model.parameters()] == moments
    for _ in range(3):
        step(model, optimizer)
        step(other, rival)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.RAdam])
def test_its_kin_equal_themselves_built_decoupled(kind):
    model = network()
    optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.02)
    step(model, optimizer)
    other = copy.deepcopy(model)
    rival = kind(other.parameters(), lr=0.01, weight_decay=0.02, decoupled_weight_decay=True)
    rival.load_state_dict({**rival.state_dict(), "state": copy.deepcopy(optimizer.state_dict()["state"])})
    DecoupleDecay().plan(model, optimizer).apply()
    step(model, optimizer)
    step(other, rival)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_groups_added_later_are_decoupled_and_undo_takes_all_back():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=1)
    before = copy.deepcopy(optimizer.state_dict())
    plan = DecoupleDecay(0.1).plan(model, optimizer)
    receipt = plan.apply()
    assert receipt.changes == ("optimiser group 0: coupled weight_decay 1 → decoupled weight_decay 0.1",)
    assert optimizer.defaults["decoupled_weight_decay"] is True
    changed = copy.deepcopy(optimizer.state_dict())
    receipt.undo()
    assert optimizer.state_dict() == before
    assert optimizer.defaults["decoupled_weight_decay"] is False
    exec(plan.source, {"optimizer": optimizer})
    assert optimizer.state_dict() == changed
    assert optimizer.defaults["decoupled_weight_decay"] is True


def test_undo_after_the_decay_was_moved_divides():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.5)
    receipt = DecoupleDecay(4.0).plan(model, optimizer).apply()
    optimizer.param_groups[0]["weight_decay"] = 1.0
    receipt.undo()
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


def test_undo_reaches_the_groups_that_a_checkpoint_of_afterwards_brought():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.5)
    receipt = DecoupleDecay(4.0).plan(model, optimizer).apply()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    receipt.undo()
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is False


def test_undo_leaves_what_a_checkpoint_of_before_brought():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.5)
    before = copy.deepcopy(optimizer.state_dict())
    receipt = DecoupleDecay(4.0).plan(model, optimizer).apply()
    optimizer.load_state_dict(before)
    receipt.undo()
    assert optimizer.state_dict() == before
    assert optimizer.defaults["decoupled_weight_decay"] is False


def test_undo_is_refused_where_groups_were_exchanged_and_nothing_changes():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.5)
    receipt = DecoupleDecay().plan(model, optimizer).apply()
    group = optimizer.param_groups[0]
    optimizer.param_groups[0] = {**group, "params": list(group["params"])}
    with pytest.raises(SurgeryError, match="groups that were exchanged for others since"):
        receipt.undo()
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True


class Own(torch.optim.Adam):
    """A subclass, whose step may do otherwise."""


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda each: torch.optim.SGD(each, lr=0.1, weight_decay=0.1), "a SGD"),
        (lambda each: Own(each, weight_decay=0.1), "a Own"),
        (lambda each: torch.optim.AdamW(each), "an AdamW, which has it decoupled"),
        (lambda each: torch.optim.Adam(each), "none among the 1 groups of the Adam"),
        (lambda each: torch.optim.Adam(each, weight_decay=1.0, decoupled_weight_decay=True), "none among the 1"),
    ],
)
def test_what_it_does_not_know_is_refused(make, reason):
    model = network()
    with pytest.raises(SurgeryError, match=reason):
        DecoupleDecay().plan(model, make(model.parameters()))


def test_an_older_torch_is_told():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    del optimizer.param_groups[0]["decoupled_weight_decay"]
    with pytest.raises(SurgeryError, match="use a newer torch"):
        DecoupleDecay().plan(model, optimizer)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_factor_that_is_none_is_refused(factor):
    model = network()
    with pytest.raises(InputError, match="a positive factor"):
        DecoupleDecay(factor).plan(model, torch.optim.Adam(model.parameters(), weight_decay=0.1))
    with pytest.raises(SurgeryError, match="expected an optimiser; got None"):
        DecoupleDecay().plan(model, None)
