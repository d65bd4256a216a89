"""Loops of every shape: what a step is, whose loss it is, and what it leaves behind."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.site import Site


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(count, samples=24):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(samples, 6, generator=generator), torch.randint(0, 3, (samples,), generator=generator))
        for _ in range(count)
    ]


def test_gan_models_have_their_own_steps_and_losses(record):
    torch.manual_seed(0)
    generator, critic = (
        nn.Sequential(nn.Linear(4, 6), nn.Tanh()),
        nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)),
    )
    of_generator = torch.optim.SGD(generator.parameters(), lr=0.1)
    of_critic = torch.optim.SGD(critic.parameters(), lr=0.1)
    first = record(generator, of_generator, stream="generator")
    second = record(critic, of_critic, stream="critic")
    losses = {"generator": [], "critic": []}
    for step in range(4):
        of_critic.zero_grad()
        real = -critic(torch.randn(8, 6)).mean()
        real.backward()
        fake = critic(generator(torch.randn(8, 4)).detach()).mean()
        fake.backward()
        of_critic.step()
        losses["critic"].append((real + fake).item())
        if step % 2:
            of_generator.zero_grad()
            loss = -critic(generator(torch.randn(8, 4))).mean()
            loss.backward()
            of_generator.step()
            losses["generator"].append(loss.item())
    for recording, stream, steps in ((first, "generator", 2), (second, "critic", 4)):
        history = recording.close()
        assert not history.events("monitor-error")
        assert history.steps == steps
        assert history.values("loss", stream)[1].tolist() == pytest.approx(losses[stream])
    # What the critic saw for the generator's sake, after its own step, is no batch of its next step.
    ((_, summary), *_) = second.run.summaries(Site("0", "input", "critic"))
    assert summary.counts.total == 2 * 8 * 6


@pytest.mark.parametrize("first", [0, 1])
def test_optimisers_that_share_a_backward_share_its_loss(record, first):
    model = net()
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters())]
    recording = record(model, optimizers[0])
    expected = []
    for inputs, labels in batches(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        expected.append(loss.item())
        optimizers[first].step()
        optimizers[1 - first].step()
    history = recording.close()
    assert history.steps == 3
    assert history.values("loss")[1].tolist() == pytest.approx(expected)
    assert {site.module for site in history.sites(port="update")} == {"0"}


def test_a_step_without_a_backward_has_no_loss(record, train):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    train(model, optimizer, batches(1))
    optimizer.step()
    train(model, optimizer, batches(1))
    assert recording.close().values("loss")[0].tolist() == [1, 3]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_are_told_unscaled_with_fused_optimisers_too(record, kind, fused):
    def run(scaler):
        model = net()
        optimizer = kind(model.parameters(), lr=0.1, fused=fused)
        recording = record(model, optimizer)
        for step, (inputs, labels) in enumerate(batches(4)):
            if scaler is None and step == 1:
                continue
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                if step == 1:
                    model[0].weight.grad[0, 0] = torch.inf
                scaler.step(optimizer)
                scaler.update()
        return recording.close()

    scaled, plain = run(torch.amp.GradScaler("cpu", init_scale=1024.0)), run(None)
    assert not scaled.events("monitor-error")
    assert [event.step for event in scaled.events("skipped-step")] == [1]
    assert scaled.steps == plain.steps == 3
    assert scaled.values("gradient-norm")[1].tolist() == pytest.approx(
        plain.values("gradient-norm")[1].tolist(), rel=1e-4
    )
    assert not scaled.events("nonfinite")
    for site in (Site("0", "grad_output"), Site("0", "weight_grad", leaf="weight"), Site("0", "update", leaf="weight")):
        for measure in ("gradient-norm", "update-ratio"):
            ours = [each.value for each in scaled.readings(measure, site)]
            assert ours == pytest.approx([each.value for each in plain.readings(measure, site)], rel=1e-3)


def test_an_optimiser_that_steps_in_backward_has_one_record_a_backward(record):
    model, other = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    recording, expected = record(model, optimizer), record(other, plain)

    def step(parameter):
        optimizer.step()
        optimizer.zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    for inputs, labels in batches(3):
        F.cross_entropy(model(inputs), labels).backward()
        F.cross_entropy(other(inputs), labels).backward()
        plain.step()
        plain.zero_grad()
    history, reference = recording.close(), expected.close()
    assert not history.events("monitor-error")
    assert history.steps == 3
    assert history.values("loss")[1].tolist() == pytest.approx(reference.values("loss")[1].tolist())
    assert [step for step, _ in history.summaries(Site("2", "input"))] == [1, 2, 3]
    site = Site("2", "input")
    assert [each.value for each in history.readings("parameter-drift", site)] == pytest.approx(
        [each.value for each in reference.readings("parameter-drift", site)]
    )
    site = Site("0", "update", leaf="weight")
    assert [each.value for each in history.readings("update-ratio", site)] == pytest.approx(
        [each.value for each in reference.readings("update-ratio", site)]
    )


def test_steps_in_backward_that_pass_unseen_are_counted_once_too(record):
    model = net()
    optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()]
    recording = record(model, optimizers[0])
    for optimizer in optimizers[1:]:
        recording.watch.follow(optimizer)
    for parameter, optimizer in zip(model.parameters(), optimizers, strict=True):
        parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    for step, (inputs, labels) in enumerate(batches(6)):
        if step == 2:
            recording.watch._resting = 2
        F.cross_entropy(model(inputs), labels).backward()
    history = recording.close()
    assert history.steps == 6
    assert not history.events("monitor-error")


def test_an_exception_in_the_users_forward_leaves_the_watch_whole(record, train):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.fail = nn.Linear(6, 3), False

        def forward(self, x):
            if self.fail:
                raise KeyError("the user's own")
            return self.linear(x)

    model = nn.Sequential(Failing(), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    train(model, optimizer, batches(2))
    model[0].fail = True
    with pytest.raises(KeyError, match="own"):
        train(model, optimizer, batches(1))
    model[0].fail = False
    train(model, optimizer, batches(2))
    history = recording.close()
    assert history.steps == 4
    assert {site.call for site in history.sites(port="input")} == {0}
    assert not history.events("monitor-error")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_exception_in_the_users_hook_is_the_users(record, train):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    handle = model[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(model, optimizer, batches(1))
    handle.remove()
    train(model, optimizer, batches(2))
    assert recording.close().steps == 2


def test_nothing_of_a_pass_is_kept_alive(record):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    alive = []
    model[1].register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)))
    inputs = torch.randn(24, 6)
    loss = model(inputs).sum()
    loss.backward()
    del loss
    gc.disable()
    try:
        assert alive[0]() is None
        optimizer.step()
        alive.append(weakref.ref(inputs))
        del inputs
        assert alive[-1]() is None
    finally:
        gc.enable()
    recording.close()


def test_averaged_copies_report_to_nobody_and_average_the_same(record, train):
    def run(watched):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recording = record(model, optimizer) if watched else None
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        twin = copy.deepcopy(model)
        for batch in batches(3):
            train(model, optimizer, [batch])
            average.update_parameters(model)
            average(batch[0]).sum().backward()
            twin(batch[0]).sum().backward()
        if recording is not None:
            history = recording.close()
            ((_, summary), *_) = history.summaries(Site("0", "input"))
            assert summary.counts.total == 24 * 6
            assert {site.call for site in history.sites()} == {0}
        return average.state_dict()

    watched, bare = run(True), run(False)
    assert watched.keys() == bare.keys()
    assert all(torch.equal(watched[name], value) for name, value in bare.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_a_watched_model_says_to_close_the_watch_first(record):
    model = net()
    recording = record(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(Exception, match=r"close\(\) .*before torch.jit.script"):
        torch.jit.script(model)
    recording.close()
    assert torch.jit.script(model)(torch.ones(1, 6)).shape == (1, 3)
