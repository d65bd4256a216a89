"""What a watch sees of a training loop, leaves alone in it, and does when something goes wrong.

Long for one file, as what it tests is: one state machine, and all tests share its loop.
"""

import copy
import gc
import io
import math
import random
import signal
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from holdfast.core.errors import InputError, WatchError
from holdfast.core.site import Site
from holdfast.monitor.watch import Watch
from holdfast.store.memory import MemoryRun


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(count: int, samples: int = 32, width: int = 6, classes: int = 3):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(samples, width, generator=generator), torch.randint(0, classes, (samples,), generator=generator))
        for _ in range(count)
    ]


def train(model, optimizer, data, loss_fn=F.cross_entropy):
    for inputs, labels in data:
        optimizer.zero_grad()
        loss_fn(model(inputs), labels).backward()
        optimizer.step()


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Conv2d(8, 8, 3)
        )
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        images = F.relu(self.norm(self.features(images)), inplace=True)
        return self.head(F.dropout(images.mean((2, 3)), 0.2, self.training))


@pytest.mark.parametrize("mode", ["sampled", pytest.param("exact", marks=pytest.mark.slow)])
def test_watched_and_unwatched_training_are_bit_identical(record, mode):
    def run(watched: bool):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = Convolutional()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        data = [(torch.randn(16, 3, 10, 10), torch.randint(0, 4, (16,))) for _ in range(10)]
        probe = torch.randn(12, 3, 10, 10)
        recording = record(model, optimizer, every=3, probe=probe, mode=mode) if watched else None
        for step in range(100):
            train(model, optimizer, [data[step % 10]])
            if step % 20 == 19:
                model.eval()
                with torch.no_grad():
                    model(data[0][0])
                model.train()
        if recording is not None:
            history = recording.close()
            assert not history.events("monitor-error")
            assert history.readings("parameter-drift", lag=1)
            assert any(each.site.phase == "probe" for each in history.readings("parameter-drift", lag=10))
        return model, optimizer, (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])

    (watched, watched_optimizer, watched_random), (bare, bare_optimizer, bare_random) = run(True), run(False)
    for key, value in bare.state_dict().items():
        assert torch.equal(watched.state_dict()[key], value), key
    for parameter, state in bare_optimizer.state.items():
        name = next(name for name, each in bare.named_parameters() if each is parameter)
        other = watched_optimizer.state[dict(watched.named_parameters())[name]]
        assert torch.equal(other["momentum_buffer"], state["momentum_buffer"])
    assert torch.equal(watched_random[0], bare_random[0])
    assert watched_random[1] == bare_random[1]
    assert (watched_random[2] == bare_random[2]).all()


def test_an_update_of_one_layer_is_seen_downstream_and_not_upstream(record):
    model = small_net()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.5)
    recording = record(model, optimizer, probe=torch.randn(32, 6))
    train(model, optimizer, batches(5))
    history = recording.close()
    for phase in ("train", "probe"):
        upstream = [("0", "input"), ("0", "output"), ("1", "input"), ("1", "output"), ("2", "input")]
        downstream = [("2", "output"), ("3", "input"), ("4", "input"), ("4", "output")]
        for module, port in upstream:
            found = history.readings("parameter-drift", Site(module, port, phase=phase), lag=1)
            assert found, (module, port, phase)
            assert all(each.value == 0 for each in found), (module, port)
        for module, port in downstream:
            found = history.readings("parameter-drift", Site(module, port, phase=phase), lag=1)
            assert found
            assert all(each.value > 0 and each.above_noise for each in found), (module, port)


def test_the_drift_measured_is_the_drift_there_is(record):
    """A bias moved by a known amount moves the layer's output by that amount, in units of its SD."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Identity(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD([model[0].bias, model[2].weight], lr=1.0)
    recording = record(model, optimizer)
    inputs = torch.randn(64, 5)
    deviation = model[0](inputs).std(0, correction=0)
    shift = torch.tensor([0.3, -0.2, 0.1, 0.4])
    optimizer.zero_grad()
    (model(inputs).sum() * 0).backward()
    model[0].bias.grad = -shift
    optimizer.step()
    history = recording.close()
    (reading,) = history.readings("parameter-drift", Site("2", "input"))
    assert reading.value == pytest.approx((shift / deviation).square().mean().sqrt().item(), rel=1e-5)
    assert reading.n == 64
    assert reading.unit == "reference SD"


def test_every_step_has_its_loss_and_gradient_norm(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, every=7)
    expected, norms = [], []
    for inputs, labels in batches(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        expected.append(loss.item())
        norms.append(math.sqrt(sum(each.grad.square().sum().item() for each in model.parameters())))
        optimizer.step()
    history = recording.close()
    steps, losses = history.values("loss")
    assert steps.tolist() == list(range(1, 21))
    assert losses.tolist() == pytest.approx(expected)
    assert history.values("gradient-norm")[1].tolist() == pytest.approx(norms, rel=1e-5)
    assert history.values("learning-rate")[1].tolist() == [0.1] * 20


def test_the_losses_of_micro_batches_add_up_and_their_samples_are_merged(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    expected = 0.0
    for inputs, labels in batches(3, samples=10):
        loss = F.cross_entropy(model(inputs), labels) / 3
        loss.backward()
        expected += loss.item()
    optimizer.step()
    history = recording.close()
    assert history.values("loss")[1].tolist() == pytest.approx([expected])
    assert [site.call for site in history.sites(port="input", phase="train") if site.module == "2"] == [0]
    ((_, summary),) = history.summaries(Site("0", "input"))
    assert summary.counts.total == 3 * 10 * 6


def test_a_closure_counts_once_with_its_first_loss(record):
    model = small_net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    recording = record(model, optimizer)
    inputs, labels = batches(1)[0]
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        seen.append(loss.item())
        return loss

    for _ in range(2):
        start = len(seen)
        optimizer.step(closure)
        assert len(seen) - start > 1
    history = recording.close()
    assert history.steps == 2
    assert history.values("loss")[1].tolist() == pytest.approx([seen[0], seen[start]])


def test_a_closure_is_read_at_its_first_evaluation(record):
    model = small_net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    recording = record(model, optimizer)
    inputs, labels = batches(1)[0]
    passes = []

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        passes.append(loss.item())
        return loss

    before = copy.deepcopy(model[:3])
    optimizer.step(closure)
    history = recording.close()
    assert len(passes) > 2
    ((_, summary),) = history.summaries(Site("3", "input"))
    assert summary.moments.count == inputs.shape[0] * 8
    # The step's drift is from the weights of the first evaluation to those after the step.
    with torch.no_grad():
        reference = before(inputs)
        moved = model[:3](inputs) - reference
    squares = (moved.mean(0).square() - moved.var(0) / len(inputs)) / reference.var(0, correction=0)
    (drift,) = history.readings("parameter-drift", Site("3", "input"), lag=1)
    assert drift.value == pytest.approx(squares.mean().sqrt().item(), rel=1e-4)


def test_log_before_and_after_the_step(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    for number, (inputs, labels) in enumerate(batches(3)):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        recording.watch.log(temperature=number)
        optimizer.step()
        recording.watch.log(loss=torch.tensor(10.0 + number))
    history = recording.close()
    assert history.values("loss")[1].tolist() == [10.0, 11.0, 12.0]
    assert history.values("temperature")[1].tolist() == [0.0, 1.0, 2.0]


def test_default_sites_and_their_readings(record):
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    recording = record(model, optimizer, probe=torch.randn(16, 6))
    train(model, optimizer, batches(12))
    history = recording.close()
    assert [site.module for site in history.sites(port="input", phase="train")] == ["0", "1", "2", "3", "4"]
    assert set(history.measures()) >= {
        "parameter-drift",
        "observed-drift",
        "sampling-drift",
        "parameter-share",
        "drift-gain",
        "saturated-fraction",
        "dead-units",
        "gradient-norm",
        "backward-gain",
        "update-ratio",
        "weight-norm",
        "collapsed-features",
    }
    assert {each.site.module for each in history.readings("saturated-fraction")} == {"1"}
    assert {each.site.module for each in history.readings("dead-units")} == {"3"}
    assert {each.site.module for each in history.readings("backward-gain")} == {"1", "2", "3", "4"}
    lags = {each.lag_decade for each in history.readings("parameter-drift") if each.site.phase == "probe"}
    assert lags == {1, 10}
    structure = history.structure()
    assert structure is not None
    assert structure.order == ("0", "1", "2", "3", "4")


def test_gradient_norm_and_backward_gain_against_autograd(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recording = record(model, optimizer, mode="exact")
    ((inputs, labels),) = batches(1)
    train(model, optimizer, [(inputs, labels)])
    history = recording.close()
    values = [inputs]
    for layer in model:
        values.append(layer(values[-1]))
        values[-1].retain_grad()
    F.cross_entropy(values[-1], labels).backward()
    norms = [value.grad.norm().item() for value in values[1:]]
    for place, norm in enumerate(norms):
        site = Site(str(place), "grad_output")
        assert history.readings("gradient-norm", site)[0].value == pytest.approx(norm, rel=1e-5)
        if place:
            gain = history.readings("backward-gain", site)[0].value
            assert gain == pytest.approx(norms[place - 1] / norm, rel=1e-5)


def test_update_ratio_is_the_optimisers_real_update(record):
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    recording = record(model, optimizer)
    train(model, optimizer, batches(1))
    history = recording.close()
    for name, parameter in model.named_parameters():
        module, leaf = name.split(".")
        (reading,) = history.readings("update-ratio", Site(module, "update", leaf=leaf))
        change = (parameter.detach() - before[name]).norm() / before[name].norm()
        assert reading.value == pytest.approx(change.item(), rel=0.02)  # over the weight before or after
        (norm,) = history.readings("weight-norm", Site(module, "weight", leaf=leaf))
        assert norm.value == pytest.approx(parameter.norm().item(), rel=1e-5)


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_evaluation_passes_are_apart(record, without_gradients):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    train(model, optimizer, batches(1))
    model.eval()
    with without_gradients():
        model(torch.full((8, 6), 1e6))
    model.train()
    train(model, optimizer, batches(1))
    history = recording.close()
    assert not history.events("monitor-error")
    assert all(summary.extremes.high < 1e3 for _, summary in history.summaries(Site("0", "input")))
    ((step, seen),) = history.summaries(Site("0", "input", phase="eval"))
    assert step == 2
    assert seen.extremes.high == 1e6


def test_a_shared_module_has_a_site_for_each_call(record):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.layer(torch.tanh(self.layer(x))))

    model = Twice()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    train(model, optimizer, batches(2))
    history = recording.close()
    assert Site("layer", "input") in history.sites()
    assert Site("layer", "input", call=1) in history.sites()
    assert Site("layer", "input", call=2) not in history.sites()
    # tanh has no module: its input is the first call's output
    assert history.readings("saturated-fraction", Site("layer", "output"))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_are_counted_once(record, reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(checkpoint(self.body, self.stem(x), use_reentrant=reentrant))

    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    train(model, optimizer, batches(2, samples=16))
    history = recording.close()
    for site in (Site("body.0", "input"), Site("body.1", "output")):
        assert all(summary.counts.total == 16 * 8 for _, summary in history.summaries(site))
    gradients = history.summaries(Site("body.0", "grad_output"))
    assert [summary.counts.total for _, summary in gradients] == [16 * 8] * 2


def test_nested_inputs_and_outputs(record):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, batch):
            out, _ = self.lstm(batch["x"])
            return self.head(out[:, -1])

    model = Nested()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, probe=({"x": torch.randn(4, 5, 6)},))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model({"x": torch.randn(9, 5, 6)}), torch.randint(0, 3, (9,))).backward()
        optimizer.step()
    history = recording.close()
    leaves = {site.leaf for site in history.sites(port="output") if site.module == "lstm"}
    assert leaves >= {"0", "1.0", "1.1"}
    assert any("LSTM" in sentence or "lstm" in sentence for sentence in history.structure().not_seen)


def test_a_second_watch_on_a_watched_model_names_the_first(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    with pytest.raises(WatchError, match="one that the run 'test' watches already"):
        record(model, optimizer)
    recording.close()
    record(model, optimizer).close()


def test_what_cannot_be_watched():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(WatchError, match="expected a model with parameters; got ReLU without any"):
        Watch(nn.ReLU(), optimizer, MemoryRun, name="x")
    with pytest.raises(WatchError, match="steps none of its parameters"):
        Watch(small_net(), optimizer, MemoryRun, name="x")
    with pytest.raises(WatchError, match=r"a probe of \(4, 5\), on which the forward raised RuntimeError"):
        Watch(model, optimizer, MemoryRun, name="x", probe=torch.randn(4, 5))
    with pytest.raises(WatchError, match="which match none; choose among '0', '1'"):
        Watch(model, optimizer, MemoryRun, name="x", sites=["encoder.*"])
    with pytest.raises(InputError, match="every='auto' or a whole number"):
        Watch(model, optimizer, MemoryRun, name="x", every=0)
    with pytest.raises(InputError, match="a budget above 0"):
        Watch(model, optimizer, MemoryRun, name="x", budget=5.0)
    assert_untouched(model, optimizer)


def assert_untouched(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert torch.autograd.backward.__module__ == "torch.autograd"
    assert not hasattr(torch.autograd.backward, "__wrapped__")


def test_closing_leaves_nothing_behind(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    train(model, optimizer, batches(2))
    assert hasattr(torch.autograd.backward, "__wrapped__")
    recording.close()
    assert_untouched(model, optimizer)
    recording.close()
    train(model, optimizer, batches(2))
    assert recording.run.steps == 2


def test_copies_and_pickles_carry_no_watch(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keys = list(model.state_dict())
    recording = record(model, optimizer)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    assert b"holdfast" not in file.getvalue()
    assert list(model.state_dict()) == keys
    train(model, optimizer, batches(1))
    before = len(recording.watch._observer.observations)
    twin(torch.randn(4, 6)).sum().backward()
    assert len(recording.watch._observer.observations) == before
    assert recording.close().steps == 1


def test_nan_in_the_data_is_said_and_training_goes_on(record, tmp_path):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, folder=tmp_path)
    good, bad = batches(2)
    bad[0][3, 2] = torch.nan
    train(model, optimizer, [good, bad, good])
    history = recording.close()
    (event,) = history.events("nonfinite")
    assert event.step == 2
    assert event.data["kind"] == "input"
    assert history.steps == 3
    kept = np.load(tmp_path / event.data["kept"])
    assert np.array_equal(kept["input0"], bad[0].numpy(), equal_nan=True)
    ((_, first), (_, second), _) = history.summaries(Site("0", "input"))
    assert first.counts.nan == 0
    assert second.counts.nan == 1
    assert math.isfinite(second.moments.mean)


def test_the_operation_that_broke_the_loss_is_named(record):
    class Logarithm(nn.Module):
        def forward(self, x):
            return torch.log(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Logarithm(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    train(model, optimizer, batches(1))
    (event,) = recording.close().events("nonfinite")
    assert (event.data["where"], event.data["operation"], event.data["kind"]) == ("1", "log", "operation")


def test_an_error_of_the_monitors_own_does_not_reach_training(record, monkeypatch):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, strict=False)
    original = recording.watch._observer._reader

    def broken(path, *rest):
        if path == "2":
            raise ZeroDivisionError("planted")
        return original(path, *rest)

    monkeypatch.setattr(recording.watch._observer, "_reader", broken)
    with pytest.warns(RuntimeWarning, match=r"reading '2' failed .* ZeroDivisionError: planted \(training goes on"):
        train(model, optimizer, batches(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, batches(4))
    history = recording.close()
    assert len(history.events("monitor-error")) == 1
    assert history.steps == 5
    assert len(history.readings("parameter-drift", Site("3", "input"))) == 5
    assert not history.readings("parameter-drift", Site("2", "input"))


def test_a_sink_that_fails_does_not_reach_training(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, strict=False)

    def fail(_):
        raise OSError("gone")

    recording.run.write = fail
    with pytest.warns(RuntimeWarning, match="OSError: gone"):
        train(model, optimizer, batches(3))
    recording.watch.close()
    assert_untouched(model, optimizer)


def test_an_exception_in_the_training_loop_passes_through(record):
    class Breaks(nn.Module):
        def forward(self, x):
            raise KeyError("mine")

    model = nn.Sequential(nn.Linear(6, 3), Breaks())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    with pytest.raises(KeyError, match="mine"):
        train(model, optimizer, batches(1))
    recording.close()
    assert_untouched(model, optimizer)


def test_an_input_changed_in_place_is_not_probed_with_the_wrong_values(record):
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    train(model, optimizer, batches(3))
    history = recording.close()
    assert not history.readings("parameter-drift")
    (event,) = history.events("monitor-error")
    assert event.message == "no step probe: the batch was changed in place after the forward"


def test_a_stale_batch_is_not_taken_for_the_steps_own(record):
    """One call of the model itself, and then steps that go through its parts: nothing was seen to be replayed."""
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    recording = record(model, optimizer)
    model(torch.randn(32, 6) + 5)
    train(model, optimizer, batches(1))
    for inputs, labels in batches(4):
        optimizer.zero_grad()
        hidden = inputs
        for layer in model:
            hidden = layer(hidden)
        F.cross_entropy(hidden, labels).backward()
        optimizer.step()
    history = recording.close()
    assert {each.step for each in history.readings("parameter-drift")} == {1}
    assert [event.step for event in history.events("monitor-error")] == [2]
    assert history.steps == 5


def test_a_batch_changed_once_costs_one_steps_probe(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    for step, (inputs, labels) in enumerate(batches(5)):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        if step == 2:
            inputs.zero_()
        optimizer.step()
    history = recording.close()
    assert {each.step for each in history.readings("parameter-drift")} == {1, 2, 4, 5}


def test_a_fixed_probe_that_fails_leaves_the_rest_alone(record, monkeypatch):
    def run(breaks: bool):
        model = small_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recording = record(model, optimizer, every=2, probe=torch.randn(16, 6), strict=False)
        train(model, optimizer, batches(4))
        if breaks:

            def fail(step):
                raise ArithmeticError("planted")

            monkeypatch.setattr(recording.watch._fixed, "hold", fail)
            with pytest.warns(RuntimeWarning, match="fixed probe failed"):
                train(model, optimizer, batches(1))
        else:
            train(model, optimizer, batches(1))
        train(model, optimizer, batches(8))
        return recording.close()

    broken, whole = run(True), run(False)
    site = Site("2", "input")
    assert [step for step, _ in broken.summaries(site)] == [1, 2, 4, 6, 8, 10, 12]
    assert [each.value for each in broken.readings("parameter-drift", site)] == [
        each.value for each in whole.readings("parameter-drift", site)
    ]
    assert max(each.step for each in broken.readings("parameter-drift") if each.site.phase == "probe") <= 6


def test_a_gradient_scaler_is_seen_through(record):
    """Scaled losses and gradients are recorded unscaled, and a skipped step leaves nothing in the next one."""

    def run(scaler):
        model = small_net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recording = record(model, optimizer)
        for step, (inputs, labels) in enumerate(batches(6)):
            if scaler is None and step == 3:
                continue
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            if scaler is None:
                loss.backward()
                optimizer.step()
                continue
            scaler.scale(loss).backward()
            if step == 3:
                model[0].weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        return recording.close()

    scaled, plain = run(torch.amp.GradScaler("cpu", init_scale=1024.0)), run(None)
    assert scaled.steps == plain.steps == 5
    assert scaled.values("loss")[1].tolist() == pytest.approx(plain.values("loss")[1].tolist())
    (event,) = scaled.events("skipped-step")
    assert event.step == 3
    for site in (Site("0", "grad_output"), Site("0", "weight_grad", leaf="weight")):
        ours = [each.value for each in scaled.readings("gradient-norm", site)]
        assert ours == pytest.approx([each.value for each in plain.readings("gradient-norm", site)], rel=1e-4)
    assert not scaled.events("nonfinite")
    assert torch.amp.GradScaler.scale.__qualname__ == "GradScaler.scale"
    assert not hasattr(torch.amp.GradScaler.scale, "__wrapped__")


def test_warnings_turned_into_errors_do_not_reach_training(record, monkeypatch, capsys):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, strict=False)
    monkeypatch.setattr(recording.watch._observer, "_reader", lambda *_: 1 / 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, batches(3))
    history = recording.close()
    assert history.steps == 3
    assert len(history.values("loss")[1]) == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_loss_that_stays_nan_does_not_raise_the_cadence_for_ever(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, every=100)
    data = batches(120)
    data[4][0][0, 0] = torch.nan
    train(model, optimizer, data)
    history = recording.close()
    assert len(history.events("nonfinite")) == 1
    assert len(history.summaries(Site("0", "input"))) < 30


def test_a_second_nan_later_is_reported_too(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    recording = record(model, optimizer, every=100)
    data = batches(9)
    for step in (2, 6):
        data[step][0][0, 0] = torch.nan
    for inputs, labels in data:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        for parameter in model.parameters():
            parameter.grad.nan_to_num_()
        optimizer.step()
    assert [event.step for event in recording.close().events("nonfinite")] == [3, 7]


def test_parameters_added_later_count_in_the_gradient_norm_at_once(record):
    model = small_net()
    model[4].requires_grad_(False)
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    recording = record(model, optimizer, every=100)
    train(model, optimizer, batches(2))
    model[4].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[4].parameters())})
    train(model, optimizer, batches(1))
    expected = math.sqrt(sum(each.grad.square().sum().item() for each in model.parameters()))
    assert recording.close().values("gradient-norm")[1][-1] == pytest.approx(expected, rel=1e-5)


def test_a_forgotten_watch_goes_with_its_model():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = MemoryRun()
    watch = Watch(model, optimizer, lambda: run, name="forgotten", every=1)
    train(model, optimizer, batches(2))
    del watch, model, optimizer
    gc.collect()
    assert not hasattr(torch.autograd.backward, "__wrapped__")
    assert run.events("cadence")


def test_half_precision_and_channels_last(record):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer)
    for _ in range(3):
        inputs = torch.randn(32, 3, 8, 8).to(memory_format=torch.channels_last)
        inputs += 2  # so that a moved weight moves every sample alike
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(inputs).float(), torch.randint(0, 3, (32,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    history = recording.close()
    assert not history.events("monitor-error")
    # Unchanged inputs do not drift: the replay casts as the training forward did.
    assert all(each.value == 0 for each in history.readings("parameter-drift", Site("0", "input")))
    assert history.readings("parameter-drift", Site("3", "input"))[0].value > 0


def test_the_account_is_recorded(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, every=2)
    train(model, optimizer, batches(6))
    (event,) = recording.close().events("cadence")
    assert event.data["observed"] == 4  # 1, 2, 4, 6
    assert event.data["overhead"] > 0
    assert set(event.data["seconds"]) == {"run", "hooks", "measures", "probes", "hand-off", "writing"}


def test_statistics_come_at_every_observed_step_and_measures_at_those_with_probes(record):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, probe_every=3, mode="exact", probe=torch.randn(8, 6))
    data = batches(7)
    train(model, optimizer, data)
    history = recording.close()
    site = Site("0", "input")
    summaries = dict(history.summaries(site))
    assert list(summaries) == list(range(1, 8))
    assert {each.step for each in history.readings("parameter-drift", site)} == {1, 3, 6}
    assert {each.step for each in history.readings("update-ratio")} == {1, 3, 6}
    for step, channels in history.channels(site):
        inputs = data[step - 1][0].double()
        assert summaries[step].moments.m2 == pytest.approx(inputs.var(correction=0).item() * inputs.numel(), rel=1e-9)
        assert channels.mean.tolist() == pytest.approx(inputs.mean(0).tolist(), rel=1e-6)
    (account,) = history.events("cadence")
    assert (account.data["observed"], account.data["probed"]) == (7, 3)


def test_steps_of_a_tiny_net_pass_unseen_and_are_counted(record, monkeypatch):
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, every="auto", budget=0.001)
    train(model, optimizer, batches(1) * 700)
    hooks = len(model._forward_pre_hooks)
    assert recording.watch.step == 700
    recording.watch.log(mine=1.0)  # which step it is of must be known: from now on none passes unseen
    train(model, optimizer, batches(1) * 60)
    history = recording.close()
    steps, losses = history.values("loss")
    assert hooks == 0
    assert len(steps) < 500
    assert steps[-60:].tolist() == list(range(701, 761))
    assert history.values("mine")[0].tolist() == [701]
    assert np.isfinite(losses).all()
    (account,) = history.events("cadence")
    assert account.data["steps"] == 760
    assert account.data["unseen"] == 760 - len(steps)
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_two_watches_of_which_one_rests_both_hear_their_losses(record):
    models = [small_net(seed) for seed in (0, 1)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    recordings = [
        record(models[0], optimizers[0], every="auto", budget=0.0001, stream="resting"),
        record(models[1], optimizers[1], every=1000, stream="awake"),
    ]
    for data in batches(1) * 300:
        for model, optimizer in zip(models, optimizers, strict=True):
            train(model, optimizer, [data])
    assert len(recordings[0].close().values("loss", "resting")[0]) < 300
    assert recordings[1].close().values("loss", "awake")[0].tolist() == list(range(1, 301))


def test_ctrl_c_while_records_are_handed_on_loses_none_of_them():
    class Interrupted(MemoryRun):
        def write(self, record):
            if record.step == 3 and record.values:
                signal.raise_signal(signal.SIGINT)
            super().write(record)

    run = Interrupted()
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, optimizer, lambda: run, name="test", every=1)
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, batches(9))
    watch.close()
    steps, _ = run.values("loss")
    assert steps.tolist() == list(range(1, watch.step + 1))
    assert 3 in steps
