import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.site import Site
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
