"""What has no threshold says why; nothing is changed on the way."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from holdfast.core.errors import InputError
from holdfast.core.site import Site
from holdfast.live.moment import Moment
from holdfast.measures import WATCHABLE, hessian_trace, sharpness, spectral_density, stability, stability_ratio
from holdfast.measures.stability_threshold import Threshold, stability_threshold

pytest.importorskip("curvlinops", reason="the extra `landscape` is not installed")


def problem() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.4), nn.Linear(6, 3))
    return model, (torch.randn(16, 8), torch.randint(3, (16,)))


def stepped(optimizer: Optimizer) -> Optimizer:
    for group in optimizer.param_groups:
        for each in group["params"]:
            each.grad = torch.ones_like(each)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: RMSprop(p), "for RMSprop no stability threshold"),
        (lambda p: SGD(p, 0.1, maximize=True), "it maximises"),
        (lambda p: SGD(p, 0.0), "learning rate is 0"),
        (lambda p: Adam(p, 0.1), "made no step yet"),
        (lambda p: SGD([{"params": p[:1], "momentum": 0.5}, {"params": p[1:]}], 0.1), "differ in momentum"),
        (lambda p: SGD([torch.ones(1)], 0.1), "none of the parameters"),
        (lambda p: stepped(AdamW(p, 0.5, weight_decay=4.0)), "the decay diverges"),
    ],
)
def test_without_a_threshold_there_is_the_reason(make: Callable[[list[nn.Parameter]], Optimizer], reason: str) -> None:
    model, batch = problem()
    found = stability(model, F.cross_entropy, batch, make(list(model.parameters())))
    assert (found.threshold, found.ratio) == (None, None)
    assert reason in found.formula
    assert found.sharpness == sharpness(model, F.cross_entropy, batch)


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda p: SGD(p, 0.1), 20.0),
        (lambda p: SGD(p, 0.1, momentum=0.9), 38.0),
        (lambda p: SGD(p, 0.1, momentum=0.9, dampening=0.5), 76.0),
        (lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True), 3.8 / 2.8 / 0.1),
        (lambda p: stepped(Adam(p, 0.1)), 380.0),
        (lambda p: stepped(AdamW(p, 0.1, betas=(0.5, 0.9))), 60.0),
        (lambda p: SGD(p, torch.tensor(0.1)), 20.0),
    ],
)
def test_thresholds_in_closed_form(make: Callable[[list[nn.Parameter]], Optimizer], value: float) -> None:
    parameters = list(nn.Linear(2, 1).parameters())
    found = stability_threshold(make(parameters), parameters)
    assert isinstance(found, Threshold)
    assert found.value == pytest.approx(value)


def test_preconditioner_is_what_adam_divides_by() -> None:
    """After one step from zero moments v̂ = g², so that P = |g| + ε, and 1 − β₁ is divided out."""
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = Adam([p], 0.1)
    p.grad = torch.tensor([3.0, -0.5])
    optimizer.step()
    found = stability_threshold(optimizer, [p])
    torch.testing.assert_close(found.scale[0], torch.tensor([1 / 3.0, 1 / 0.5]) / 0.1)


@pytest.mark.parametrize(
    "measure",
    [
        lambda *args: sharpness(*args),
        lambda *args: hessian_trace(*args, products=12),
        lambda *args: spectral_density(*args, probes=2, steps=5),
        lambda *args: spectral_density(*args, kind="gauss-newton", probes=2, steps=5),
    ],
)
def test_model_stays_bit_for_bit_and_figures_repeat(measure: Callable[..., object]) -> None:
    model, batch = problem()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [each.grad.clone() for each in model.parameters()]
    versions = [each._version for each in (*model.parameters(), *model.buffers())]
    state = torch.get_rng_state()
    first = measure(model, F.cross_entropy, batch)
    assert str(measure(model, F.cross_entropy, batch)) == str(first)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert versions == [each._version for each in (*model.parameters(), *model.buffers())]
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True))
    assert all(module.training for module in model.modules())


def test_optimizer_stays_as_it_was() -> None:
    model, batch = problem()
    optimizer = stepped(AdamW(model.parameters(), 0.01))
    before = copy.deepcopy(optimizer.state_dict())
    assert stability(model, F.cross_entropy, batch, optimizer).ratio.value > 0
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, state in before["state"].items():
        assert all(torch.equal(value, after["state"][key][name]) for name, value in state.items())


def test_mode_is_told_apart() -> None:
    model, batch = problem()
    found = {mode: sharpness(model, F.cross_entropy, batch, mode=mode).value for mode in ("train", "eval")}
    assert found["train"] != found["eval"]
    assert sharpness(model, F.cross_entropy, batch).value == found["train"]


def test_a_loss_that_is_not_finite_has_no_curvature() -> None:
    layer, x = nn.Linear(2, 1), torch.ones(4, 2)
    for measure in (sharpness, hessian_trace, spectral_density):
        assert measure(layer, lambda out, _: (out * math.inf).sum(), (x, None)) is None
    assert stability(layer, lambda out, _: (out * math.inf).sum(), (x, None), SGD(layer.parameters(), 0.1)) is None


def test_too_few_products_or_probes_are_refused() -> None:
    model, batch = problem()
    with pytest.raises(InputError, match="six products"):
        hessian_trace(model, F.cross_entropy, batch, products=5)
    with pytest.raises(InputError, match="two probes"):
        spectral_density(model, F.cross_entropy, batch, probes=1)


def test_ratio_needs_a_threshold() -> None:
    model, batch = problem()
    found = sharpness(model, F.cross_entropy, batch)
    assert stability_ratio(found, math.inf) is None
    assert stability_ratio(found, 0.0) is None


def test_take_reads_what_the_moment_holds() -> None:
    model, batch = problem()
    take = WATCHABLE["stability-ratio"].start()
    moment = Moment(model, 5, "mine", batch=batch, loss_fn=F.cross_entropy, optimizer=SGD(model.parameters(), 0.1))
    readings = take(moment)
    assert [each.measure for each in readings] == ["stability-ratio"]
    assert {(each.site, each.step) for each in readings} == {(Site("", "weight", stream="mine"), 5)}
    assert [each.measure for each in WATCHABLE["sharpness"].start()(moment)] == ["sharpness"]
    unknown = Moment(model, 5, batch=batch, loss_fn=F.cross_entropy, optimizer=RMSprop(model.parameters()))
    with pytest.raises(InputError, match="for RMSprop no stability threshold"):
        take(unknown)
    assert take(Moment(model, 5, optimizer=SGD(model.parameters(), 0.1))) == []
