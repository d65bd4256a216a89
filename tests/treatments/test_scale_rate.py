import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
from holdfast.treatments.groups import schedulers
from holdfast.treatments.scale_rate import ScaleRate


def network(**settings):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    groups = [{"params": model[0].parameters(), "lr": 0.3}, {"params": model[2].parameters()}]
    return model, torch.optim.SGD(groups, lr=0.1, **settings)


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def test_every_group_or_that_of_the_named_layers():
    model, optimizer = network()
    ScaleRate(2.0).plan(model, optimizer).apply()
    assert rates(optimizer) == [0.6, 0.2]
    model, optimizer = network()
    receipt = ScaleRate(0.5).plan(model, optimizer, [Site("2", "update", leaf="weight")]).apply()
    assert rates(optimizer) == [0.3, 0.05]
    assert receipt.changes == ("optimiser group 1: lr 0.1 → 0.05",)


def test_the_default_is_a_third_and_undo_gives_the_very_value():
    model, optimizer = network()
    receipt = ScaleRate().plan(model, optimizer).apply()
    assert rates(optimizer) == pytest.approx([0.1, 0.1 / 3])
    receipt.undo()
    assert rates(optimizer) == [0.3, 0.1]


def test_a_scheduler_given_keeps_the_factor_and_one_not_given_is_told():
    model, optimizer = network()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    assert "give scheduler=" in ScaleRate(0.5).plan(model, optimizer).diff
    receipt = ScaleRate(0.5, scheduler=scheduler).plan(model, optimizer).apply()
    optimizer.step()
    scheduler.step()
    assert rates(optimizer) == [0.15, 0.05]
    receipt.undo()
    optimizer.step()
    scheduler.step()
    assert rates(optimizer) == [0.3, 0.1]


def test_undo_after_a_scheduler_moved_the_rate_divides():
    model, optimizer = network()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    receipt = ScaleRate(0.1, scheduler=scheduler).plan(model, optimizer).apply()
    optimizer.step()
    scheduler.step()
    receipt.undo()
    assert rates(optimizer) == pytest.approx([0.15, 0.05])


def test_a_rate_that_is_a_tensor_stays_the_same_tensor():
    model = nn.Linear(1, 1)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, capturable=False, foreach=False)
    receipt = ScaleRate(0.5).plan(model, optimizer).apply()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.25
    receipt.undo()
    assert rate.item() == 0.5


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_none_is_refused(factor):
    model, optimizer = network()
    with pytest.raises(InputError, match="a positive factor"):
        ScaleRate(factor).plan(model, optimizer)


def test_without_optimiser_or_without_parameters_it_is_refused():
    model, optimizer = network()
    with pytest.raises(SurgeryError, match="expected an optimiser; got None"):
        ScaleRate().plan(model, None)
    with pytest.raises(SurgeryError, match="1, which it does not"):
        ScaleRate().plan(model, optimizer, [Site("1", "input")])


def sequential(optimizer):
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(optimizer, 30)]
    return lr_scheduler.SequentialLR(optimizer, parts, [5])


def chained(optimizer):
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=8), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts)


def nested(optimizer):
    parts = [chained(optimizer), lr_scheduler.StepLR(optimizer, 4)]
    optimizer.step()  # or torch warns
    return lr_scheduler.SequentialLR(optimizer, parts, [10])


def cyclic(optimizer):
    return lr_scheduler.CyclicLR(optimizer, [0.1, 0.2], [1.0, 2.0], step_size_up=4, mode="triangular2")


SCHEDULERS = {
    "lambda": lambda each: lr_scheduler.LambdaLR(each, [lambda step: 0.9**step, lambda step: 1 / (1 + step)]),
    "multiplicative": lambda each: lr_scheduler.MultiplicativeLR(each, lambda step: 0.9),
    "step": lambda each: lr_scheduler.StepLR(each, 4, 0.5),
    "multi-step": lambda each: lr_scheduler.MultiStepLR(each, [2, 7, 9], 0.5),
    "constant": lambda each: lr_scheduler.ConstantLR(each, 0.25, 6),
    "linear": lambda each: lr_scheduler.LinearLR(each, 0.1, total_iters=9),
    "exponential": lambda each: lr_scheduler.ExponentialLR(each, 0.9),
    "polynomial": lambda each: lr_scheduler.PolynomialLR(each, 30, 2.0),
    "cosine": lambda each: lr_scheduler.CosineAnnealingLR(each, 12, eta_min=0.01),
    "restarts": lambda each: lr_scheduler.CosineAnnealingWarmRestarts(each, 6, eta_min=0.01),
    "cyclic": cyclic,
    "one cycle": lambda each: lr_scheduler.OneCycleLR(each, [1.0, 2.0], total_steps=50),
    "plateau": lambda each: lr_scheduler.ReduceLROnPlateau(each, factor=0.5, patience=2, min_lr=[0.04, 0.02]),
    "one floor": lambda each: lr_scheduler.ReduceLROnPlateau(each, factor=0.5, patience=2, min_lr=0.04),
    "averaging": lambda each: swa_utils.SWALR(each, [0.01, 0.02], anneal_epochs=8),
    "chained": chained,
    "sequential": sequential,
    "nested": nested,
}


def scheduled(kind, steps):
    """Groups and their scheduler after a few steps."""
    _, optimizer = network(momentum=0.9)
    scheduler = SCHEDULERS[kind](optimizer)
    follow(optimizer, scheduler, steps)
    return optimizer, scheduler


def follow(optimizer, scheduler, steps):
    found = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        found.append(rates(optimizer))
    return torch.tensor(found, dtype=torch.float64)


def settings(optimizer, scheduler):
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return copy.deepcopy((groups, [each.state_dict() for _, each in schedulers(scheduler)]))


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("way", ["applied", "pasted"])
def test_every_later_rate_under_a_scheduler_is_the_factor_times_its_own(kind, way):
    twin = scheduled(kind, 3)
    optimizer, scheduler = scheduled(kind, 3)
    before = settings(optimizer, scheduler)
    model = nn.ParameterList(each for group in optimizer.param_groups for each in group["params"])
    plan = ScaleRate(0.5, scheduler=scheduler).plan(model, optimizer)
    if way == "applied":
        plan.apply().undo()
        assert settings(optimizer, scheduler) == before
        receipt = plan.apply()
    else:
        exec(plan.source, {"optimizer": optimizer, "scheduler": scheduler})
    torch.testing.assert_close(follow(optimizer, scheduler, 20), 0.5 * follow(*twin, 20), rtol=1e-9, atol=0)
    if way == "applied":
        receipt.undo()
        torch.testing.assert_close(follow(optimizer, scheduler, 20), follow(*twin, 20), rtol=1e-9, atol=0)


@pytest.mark.parametrize("way", ["applied", "pasted"])
def test_under_a_scheduler_other_groups_keep_their_rates(way):
    model, optimizer = network()
    scheduler = lr_scheduler.OneCycleLR(optimizer, [1.0, 2.0], total_steps=50, cycle_momentum=False)
    _, other = network()
    twin = lr_scheduler.OneCycleLR(other, [1.0, 2.0], total_steps=50, cycle_momentum=False)
    plan = ScaleRate(0.5, scheduler=scheduler).plan(model, optimizer, [Site("2", "output")])
    plan.apply() if way == "applied" else exec(plan.source, {"optimizer": optimizer, "scheduler": scheduler})
    wanted = follow(other, twin, 20) * torch.tensor([1.0, 0.5])
    torch.testing.assert_close(follow(optimizer, scheduler, 20), wanted, rtol=1e-9, atol=0)


class Own(lr_scheduler.LambdaLR):
    """A subclass, which may compute its rates otherwise."""


def test_a_scheduler_that_cannot_be_scaled_is_refused():
    model, optimizer = network()
    chain = lr_scheduler.ChainedScheduler([Own(optimizer, lambda step: 1.0)])
    with pytest.raises(SurgeryError, match="got a Own; build the scheduler from rates that you scale yourself"):
        ScaleRate(0.5, scheduler=chain).plan(model, optimizer)
    floor = lr_scheduler.CosineAnnealingLR(optimizer, 5, eta_min=0.01)
    with pytest.raises(SurgeryError, match=r"eta_min = 0\.01 for all groups; scale all groups"):
        ScaleRate(0.5, scheduler=floor).plan(model, optimizer, [Site("2", "output")])


@pytest.mark.parametrize("kind", ["lambda", "plateau", None])
def test_undo_reaches_the_groups_that_a_checkpoint_of_afterwards_brought(kind):
    model, optimizer = network()
    scheduler = kind and SCHEDULERS[kind](optimizer)
    receipt = ScaleRate(0.5, scheduler=scheduler).plan(model, optimizer).apply()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    if scheduler is not None:
        scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    receipt.undo()
    assert rates(optimizer) == [0.3, 0.1]
    assert scheduler is None or kind == "plateau" or scheduler.base_lrs == [0.3, 0.1]


@pytest.mark.parametrize("kind", ["lambda", "plateau", None])
def test_undo_leaves_what_a_checkpoint_of_before_brought(kind):
    model, optimizer = network()
    scheduler = kind and SCHEDULERS[kind](optimizer)
    states = copy.deepcopy([each.state_dict() for each in (optimizer, scheduler) if each is not None])
    receipt = ScaleRate(0.5, scheduler=scheduler).plan(model, optimizer).apply()
    for each, state in zip((optimizer, scheduler), states, strict=False):
        each.load_state_dict(state)
    receipt.undo()
    assert rates(optimizer) == [0.3, 0.1]
    assert scheduler is None or scheduler.state_dict() == states[1]


def test_undo_is_refused_where_groups_were_exchanged_and_nothing_changes():
    model, optimizer = network()
    receipt = ScaleRate(0.5).plan(model, optimizer).apply()
    group = optimizer.param_groups[1]
    optimizer.param_groups[1] = {**group, "params": list(group["params"])}
    with pytest.raises(SurgeryError, match="groups that were exchanged for others since"):
        receipt.undo()
    assert rates(optimizer) == [0.15, 0.05]
