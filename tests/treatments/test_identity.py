"""`insert-norm` with `start="identity"`: what is computed in eval mode stays, and so does what is wrong with it."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from holdfast.core.errors import SurgeryError
from holdfast.core.site import Site
from holdfast.lab.networks import build
from holdfast.treatments.identity import Moments, moments_before
from holdfast.treatments.insert_norm import InsertNorm


def perceptron(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 2)]
    return nn.Sequential(*layers).to(dtype)


def convolutional():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 25, 2))


def values(model):
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("eps", [1e-5, 1e-1])
def test_a_settled_norm_gives_back_its_input_in_eval_mode_whatever_epsilon_is(eps):
    torch.manual_seed(0)
    x = torch.randn(50, 7, dtype=torch.float64) * torch.logspace(-6, 6, 7) + torch.linspace(-30, 30, 7)
    norm = Moments.of(x.T).settle(nn.BatchNorm1d(7, eps=eps)).eval()
    torch.testing.assert_close(norm(x), x, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(norm.running_var, x.var(0))


@pytest.mark.parametrize(("build_", "shape"), [(perceptron, (32, 4)), (convolutional, (8, 1, 9, 9))])
def test_eval_mode_computes_what_it_did(build_, shape):
    model, batch, other = build_(), torch.randn(shape) * 3 + 1, torch.randn(shape) - 5
    before = model.eval()(other)
    receipt = InsertNorm(start="identity", batch=batch).plan(model.train(), None).apply()
    torch.testing.assert_close(model.eval()(other), before, atol=2e-6, rtol=1e-5)
    assert receipt.error_eval < 2e-6 < 1e-4 < receipt.error_train


def test_in_train_mode_each_channel_is_stretched_by_the_ratio_of_the_two_variances():
    model, batch = perceptron(), torch.randn(32, 4)
    InsertNorm(start="identity", batch=batch).plan(model, None, [Site("2", "input")]).apply()
    seen = []
    model[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model[2].layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(batch)
    before, after = seen
    eps, centred = model[2].norm.eps, before - before.mean(0)
    stretch = ((before.var(0) + eps) / (before.var(0, correction=0) + eps)).sqrt()
    torch.testing.assert_close(after - before.mean(0), centred * stretch, atol=1e-6, rtol=1e-5)


def test_a_dead_signal_stays_dead_and_undo_is_bit_for_bit():
    torch.manual_seed(0)
    batch = torch.randn(64, 20)
    model = build("dead", features=20, classes=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(batch).square().mean().backward()
    optimizer.step()
    before, outputs = values(model), model.eval()(batch)
    plan = InsertNorm(start="identity", batch=batch).plan(model.train(), optimizer)
    assert "  output: 64 of 64 channels have an SD below √ε = 0.0032 on the batch" in plan.diff
    receipt = plan.apply()
    assert receipt.error_eval < 1e-5
    torch.testing.assert_close(model.eval()(batch), outputs, atol=1e-5, rtol=0)
    # dead: samples cannot be told apart, before and after; in training too
    assert outputs.std(0).max() < 1e-5
    assert model.train()(batch).std(0).max() < 1e-4
    receipt.undo()
    assert values(model) == before
    # a fresh one does change it
    InsertNorm(start="fresh", batch=batch).plan(model, optimizer).apply()
    assert model(batch).std(0).min() > 0.01


def test_constant_channels_are_kept_and_told():
    model, batch = perceptron(), torch.randn(32, 4)
    with torch.no_grad():
        model[0].weight[:2] = 0.0
    plan = InsertNorm(start="identity", batch=batch).plan(model, None, [Site("1", "input")])
    assert "  1: 2 of 6 channels have an SD below √ε = 0.0032" in plan.diff
    receipt = plan.apply()
    assert receipt.error_eval < 2e-6
    torch.testing.assert_close(model[1].norm.weight[:2], torch.full((2,), 1e-5).sqrt())


def test_the_statistics_leave_no_trace_and_come_from_the_mode_of_the_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 6), nn.Tanh())
    model.append(nn.Linear(6, 2))
    batch, before = torch.randn(400, 4), values(model)
    found = {}
    for mode in (True, False):
        generator = torch.get_rng_state()
        found[mode] = moments_before(model.train(mode), [model[4]], batch)[id(model[4])]
        assert torch.equal(torch.get_rng_state(), generator)
    assert values(model) == before
    assert not model[4]._forward_pre_hooks
    with torch.random.fork_rng():
        inputs = model[3](model[2].train()(model[1].train()(model[0](batch)))).detach().double()
    torch.testing.assert_close(found[True].variance, inputs.var(0))
    assert (found[True].variance > found[False].variance * 1.2).all()


def test_a_layer_that_runs_twice_has_the_moments_of_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.step = nn.Linear(4, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.step(self.step(self.into(x)))

    torch.manual_seed(0)
    model, batch = Twice(), torch.randn(16, 4)
    first = model.into(batch)
    both = torch.cat([first, model.step(first)]).detach().double()
    torch.testing.assert_close(moments_before(model, [model.step], batch)[id(model.step)].mean, both.mean(0))
    with pytest.raises(SurgeryError, match=r'LayerNorm would serve here, .*: say kind="batch"'):
        InsertNorm(start="identity", batch=batch).plan(model, None)
    assert InsertNorm("batch", "identity", batch).plan(model, None).apply().error_eval < 2e-6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "a batch whose statistics make the norm the identity; got none; type: InsertNorm"),
        ({"kind": "layer", "batch": torch.randn(16, 4)}, "no γ, β give all samples back"),
        ({"batch": torch.randn(4, 4)}, "LayerNorm would serve here"),
        ({"kind": "batch", "batch": torch.randn(1, 4)}, "in front of 2: the batch gives one value of each channel"),
        ({"batch": torch.full((16, 4), torch.nan)}, "in front of 2: its input on the batch is not finite in 6 chan"),
        ({"batch": torch.randn(16, 9, 4), "kind": "batch"}, "BatchNorm1d would take the sequence for the features"),
    ],
)
def test_what_cannot_be_the_identity_is_refused_with_the_reason(options, reason):
    model = perceptron()
    before = values(model)
    with pytest.raises(SurgeryError, match=reason):
        InsertNorm(start="identity", **options).plan(model, None)
    assert values(model) == before


def test_a_layer_that_did_not_run_and_a_variance_beyond_half_precision_are_refused():
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), b=nn.Linear(4, 4)))
    model.add_module("spare", nn.ModuleList([nn.Linear(4, 4)]))
    model.forward = lambda x: model.b(model.a(x))
    plan = InsertNorm(start="identity", batch=torch.randn(16, 4))
    with pytest.raises(SurgeryError, match=r"in front of spare.0: it did not run on the batch"):
        plan.plan(model, None, [Site("b", "input"), Site("spare.0", "input")])
    half, batch = perceptron(torch.float16), torch.randn(16, 4).half()
    with torch.no_grad():
        half[0].weight.mul_(1000)
    with pytest.raises(SurgeryError, match=r"its variance overflows torch.float16"):
        InsertNorm(start="identity", batch=batch).plan(half, None, [Site("1", "input")])


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 4e-2)], ids=str
)
def test_the_error_is_that_of_the_type(dtype, rounding):
    model, batch = perceptron(dtype), torch.randn(32, 4, dtype=dtype)
    receipt = InsertNorm(start="identity", batch=batch).plan(model, None).apply()
    assert receipt.error_eval < rounding
    assert {each.dtype for each in model.parameters()} == {dtype}


def test_the_lines_to_paste_do_the_same():
    model, pasted, batch = perceptron(), perceptron(), torch.randn(32, 4)
    plan = InsertNorm(start="identity", batch=batch).plan(model, None)
    exec(plan.source, {"model": pasted, "batch": batch, "torch": torch, "nn": nn})
    plan.apply()
    assert list(pasted.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(pasted.state_dict(), model.state_dict())


def test_undo_after_training_keeps_what_training_did():
    torch.manual_seed(0)
    model, batch = perceptron(), torch.randn(32, 4)
    optimizer = torch.optim.Adam(model.parameters())
    receipt = InsertNorm(start="identity", batch=batch).plan(model, optimizer).apply()
    model(batch).square().mean().backward()
    optimizer.step()
    weight = model[2].layer.weight.detach().clone()
    receipt.undo()
    assert torch.equal(model[2].weight, weight)
    assert len(optimizer.state) == 6
