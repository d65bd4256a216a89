"""The recipes: their lines must run in a script, and do what the card says."""

import math

import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.treatments.clip import Clip
from holdfast.treatments.scale_input import ScaleInput
from holdfast.treatments.warm_up import WarmUp
from holdfast.treatments.z_loss import ZLoss


def script(source, **names):
    names = {"torch": torch, **names}
    exec(source, names)
    return names


def test_clip_bounds_the_gradient():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = torch.cat([each.detach().flatten().clone() for each in model.parameters()])
    source = Clip(max_norm=0.5).plan(model, optimizer).source
    script(source, model=model, optimizer=optimizer, loss=(model(torch.randn(4, 3)) * 100).square().mean())
    after = torch.cat([each.detach().flatten() for each in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.5, rel=1e-3)


def test_clip_rehearsed_bounds_the_gradient_until_it_ends():
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    inputs = torch.randn(4, 3)

    def move():
        before = [each.detach().clone() for each in model.parameters()]
        optimizer.zero_grad()
        (model(inputs) * 100).square().mean().backward()
        optimizer.step()
        moved = [after.detach() - each for after, each in zip(model.parameters(), before, strict=True)]
        return torch.cat([each.flatten() for each in moved]).norm().item()

    receipt = Clip(max_norm=0.5).plan(model, optimizer).trial(model, optimizer)
    assert move() == pytest.approx(0.5, rel=1e-3)
    receipt.undo()
    assert move() > 5
    assert Clip().plan(model, None).rehearse_ is None


@pytest.mark.parametrize("norm", [0.0, -1, math.inf, math.nan, "a", None, True])
def test_clip_refuses_what_is_no_norm(norm):
    with pytest.raises(InputError, match="a positive max_norm"):
        Clip(max_norm=norm)


def test_warm_up_reaches_the_rate_after_its_steps():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8)
    lines = WarmUp(steps=10).plan(model, optimizer).source.splitlines()
    names = script(lines[0], optimizer=optimizer)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        exec("\n".join(lines[1:]), names)
    assert rates[0] == pytest.approx(0.008)
    assert rates[5] == pytest.approx(0.8 * (0.01 + 0.99 * 0.5))
    assert rates[10] == rates[11] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (lambda each: torch.optim.Adam(each, betas=(0.9, 0.999)), 2000),
        (lambda each: torch.optim.AdamW(each, betas=(0.9, 0.95)), 40),
        (lambda each: torch.optim.SGD(each, lr=0.1), 500),
    ],
)
def test_warm_up_takes_its_length_from_the_second_moment(make, steps):
    model = nn.Linear(1, 1)
    assert f"total_iters={steps})" in WarmUp().plan(model, make(model.parameters())).source
    assert "total_iters=500)" in WarmUp().plan(model, None).source


@pytest.mark.parametrize("steps", [0, -3, 2.5, "a", True])
def test_warm_up_refuses_what_is_no_number_of_steps(steps):
    with pytest.raises(InputError, match="at least one step"):
        WarmUp(steps=steps)


@pytest.mark.parametrize(("shape", "axes"), [((50, 3), [0]), ((50, 3, 4, 4), [0, 2, 3])])
def test_scale_input_gives_each_feature_unit_scale(shape, axes):
    torch.manual_seed(0)
    inputs = torch.rand(shape) * 255 + 40
    plan = ScaleInput(batch=inputs).plan(nn.Linear(3, 1), None)
    scaled = script(plan.source, train_inputs=inputs, inputs=inputs)["inputs"]
    torch.testing.assert_close(scaled.mean(axes), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(axes), torch.ones(3), atol=1e-4, rtol=0)
    assert "over 50 samples" in plan.diff


def test_z_loss_is_the_cross_entropy_and_a_penalty_on_the_normaliser():
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(3, 5), torch.randn(4, 3), torch.tensor([0, 4, 2, 2])
    loss = script(ZLoss(weight=0.01).plan(model, None).source, nn=nn, model=model, inputs=inputs, targets=targets)
    by_hand = 0.0
    for logits, target in zip(model(inputs).tolist(), targets.tolist(), strict=True):
        log_z = math.log(sum(map(math.exp, logits)))
        by_hand += (log_z - logits[target] + 0.01 * log_z**2) / 4
    assert loss["loss"].item() == pytest.approx(by_hand, rel=1e-6)


def test_z_loss_feels_a_constant_added_to_all_logits_and_draws_it_out():
    model, inputs, targets = nn.Linear(3, 5), torch.zeros(4, 3), torch.tensor([0, 4, 2, 2])
    nn.init.constant_(model.bias, 7.0)
    source = ZLoss(weight=0.5).plan(model, None).source
    script(source, nn=nn, model=model, inputs=inputs, targets=targets)["loss"].backward()
    # cross-entropy has no gradient along it; d/dc ½ (c + log 5)² = c + log 5
    assert model.bias.grad.sum().item() == pytest.approx(7 + math.log(5), rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, -1e-4, float("nan"), float("inf")])
def test_z_loss_refuses_a_weight_that_is_not_positive(weight):
    with pytest.raises(InputError, match="a positive weight"):
        ZLoss(weight=weight).plan(nn.Linear(1, 1), None)


def test_scale_input_without_figures():
    assert "as it is in the data" in ScaleInput().plan(nn.Linear(3, 1), None).diff
    assert (
        "as it is in the data"
        in ScaleInput(batch={"ids": torch.ones(3, dtype=torch.int64)}).plan(nn.Linear(3, 1), None).diff
    )
