import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from holdfast.core.errors import InputError, WatchError
from holdfast.live.hooks import HookSet
from holdfast.live.replay import Call, record_call, replay, untouched


def train_some(model, steps=2):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("mode", ["as it was", "train", "eval"])
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("steps", [0, 2])
def test_everything_is_bit_identical_afterwards(hard, everything, mode, fail, steps):
    train_some(hard, steps)
    call = record_call((torch.randn(16, 6),), {})
    hard.fail = fail
    python, numpy = random.getstate(), np.random.get_state()[1].tolist()
    before = everything(hard)
    if fail:
        with pytest.raises(RuntimeError, match="planted"):
            replay(hard, call, mode=mode)
    else:
        replay(hard, call, mode=mode)
    after = everything(hard)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name] == value, name
    assert random.getstate() == python
    assert np.random.get_state()[1].tolist() == numpy


def test_training_with_replays_everywhere_is_bit_identical(hard, everything):
    twin = copy.deepcopy(hard)
    twin.norm.running_mean = twin.body[1].running_mean
    results = []
    for model, watched in ((hard, False), (twin, True)):
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        losses = []
        for _ in range(6):
            x = torch.randn(16, 6)
            call = record_call((x,), {})
            optimizer.zero_grad()
            loss = model(x).square().mean()
            if watched:
                replay(model, call)
                replay(model, call, mode="eval", random=False)
            loss.backward()
            if watched:
                replay(model, call, mode="train")
            optimizer.step()
            if watched:
                replay(model, call)
            losses.append(loss.item())
        state = {name: value.tolist() for name, value in model.state_dict().items()}
        results.append((losses, state, torch.get_rng_state().tolist(), model.state.calls, model.state.history))
    assert results[0] == results[1]


def test_replay_right_after_a_training_forward_gives_the_same_output(hard):
    # Dropout masks, batch statistics and spectral norm's vectors. The other part of the network reads buffers that the
    # training forward has moved already.
    net = nn.Sequential(hard.body, hard.head)
    train_some(net)
    x = torch.randn(16, 6)
    call = record_call((x,), {})
    output = net(x)
    assert torch.equal(replay(net, call), output)
    assert not torch.equal(replay(net, call, random=False), output)


def test_mode_sets_flags_without_calling_overridden_methods():
    class Stubborn(nn.Module):
        def train(self, mode=True):
            raise AssertionError("must not be called")

        def forward(self, x):
            return x, self.training

    net, call = Stubborn(), record_call((torch.ones(1),), {})
    assert [replay(net, call, mode=mode)[1] for mode in ("train", "eval", "as it was")] == [True, False, True]


def test_the_output_carries_no_graph_and_inference_mode_poisons_nothing():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.cache = None

        def forward(self, x):
            if self.cache is None:
                self.cache = x.new_ones(2) * 3
            return x * self.weight * self.cache

    net = Caching()
    output = replay(net, record_call((torch.ones(2),), {}))
    assert not output.requires_grad
    assert net.cache is None
    net(torch.ones(2)).sum().backward()
    assert net.weight.grad.tolist() == [3, 3]


def test_arguments_changed_in_place_by_the_model_stay_as_they_are():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 1))
    x = torch.tensor([[-1.0, 2.0]])
    call = record_call((x,), {})
    replay(net, call)
    assert x.tolist() == [[-1, 2]]
    assert call.intact
    net(x)
    assert not call.intact


def test_one_tensor_given_twice_stays_one_and_keeps_requires_grad():
    class Same(nn.Module):
        def forward(self, pair, *, third):
            return pair["a"] is pair["b"][0] is third, third.requires_grad

    x = torch.ones(1, requires_grad=True)
    assert replay(Same(), record_call(({"a": x, "b": [x]},), {"third": x})) == (True, True)


def test_buffers_that_share_memory_share_it_in_the_replay_too(hard):
    class Overlap(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("whole", torch.zeros(4))
            self.register_buffer("tail", self.whole[2:])
            self.same = self.whole

        def forward(self, x):
            self.whole += x
            return self.tail.clone(), self.same is self.whole

    tail, same = replay(Overlap(), record_call((torch.ones(4),), {}))
    assert tail.tolist() == [1, 1]
    assert same


def test_renormalised_embeddings_are_left_alone_tied_ones_too():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 3, max_norm=0.1)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            assert self.head.weight is self.embedding.weight
            return self.head(self.embedding(x))

    net = Tied()
    weight, before = net.embedding.weight, net.embedding.weight.tolist()
    version = weight._version
    output = replay(net, record_call((torch.arange(5),), {}))
    assert net.embedding.weight is net.head.weight is weight
    assert weight.tolist() == before
    assert weight._version == version
    assert torch.equal(output, net(torch.arange(5)))


def test_a_forward_that_writes_its_parameters_is_named():
    class Clipping(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    net = nn.Sequential(Clipping(2, 2))
    with pytest.raises(WatchError, match=r"changes '0.weight' in place .* hf.watch\(model, optimizer, probe=None\)"):
        replay(net, record_call((torch.ones(1, 2),), {}))


def test_lazy_layers_and_torchscript_are_refused():
    call = record_call((torch.ones(1, 2),), {})
    with pytest.raises(InputError, match=r"got a LazyLinear that has not run yet; run one batch first: model\(batch\)"):
        replay(nn.Sequential(nn.LazyLinear(2)), call)
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        traced = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(InputError, match="TorchScript"):
        replay(nn.Sequential(traced), call)


def test_autocast_is_replayed_without_stale_weights():
    net = nn.Linear(4, 4)
    x = torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        call = record_call((x,), {})
        first = net(x)
        with torch.no_grad():
            net.weight += 1  # as an optimiser step does; the cache still holds the old weight
        second = replay(net, call)
        assert torch.is_autocast_cache_enabled()
        assert torch.equal(net(x), first)  # the cache was not touched
    assert second.dtype is torch.bfloat16
    assert not torch.equal(first, second)
    outside = replay(net, call)
    assert torch.equal(outside, second)
    assert not torch.is_autocast_enabled("cpu")
    plain = record_call((x,), {})
    with torch.autocast("cpu", torch.float16):
        assert replay(net, plain).dtype is torch.float32
        assert torch.get_autocast_dtype("cpu") is torch.float16


def test_inner_layers_of_a_transformer_run_in_eval_mode_too(monkeypatch):
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x, fused = torch.randn(2, 3, 8), []
    kernel = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: fused.append(1) or kernel(*args))
    with torch.no_grad():
        expected = net(x)
    assert fused == [1]
    assert torch.allclose(replay(net, record_call((x,), {})), expected, atol=1e-6)
    assert fused == [1]
    assert torch.backends.mha.get_fastpath_enabled()


def test_compiled_models_run_as_the_plain_module_and_regions_too():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net.append(torch.compile(nn.Linear(2, 2), backend="eager"))
    seen, hooks = [], HookSet()
    hooks.post(net[2]._orig_mod, lambda *_: seen.append(torch.compiler.is_compiling()))
    call = record_call((torch.ones(1, 2),), {})
    with hooks:
        replay(torch.compile(net, backend="eager"), call)
    assert seen == [False]


def test_hooks_that_come_or_go_during_the_replay_stay_so():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    going, coming = HookSet(), HookSet()
    going.post(net[0], lambda *_: (going.detach(), coming.attach()))
    coming.post(net[1], lambda *_: None)
    going.attach()
    replay(net, record_call((torch.ones(1, 2),), {}))
    assert len(net[0]._forward_hooks) == 0
    assert len(net[1]._forward_hooks) == 1
    coming.close()


def test_cached_parametrisations_are_not_filled_by_a_replay():
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    net = nn.Linear(2, 2)
    parametrize.register_parametrization(net, "weight", Double())
    x = torch.ones(1, 2)
    with parametrize.cached():
        replay(net, record_call((x,), {}))
        net(x).sum().backward()
    assert net.parametrizations.weight.original.grad is not None


def test_a_call_keeps_references():
    x = torch.ones(3)
    call = record_call((x, {"y": (x,)}), {"z": None})
    assert isinstance(call, Call)
    assert call.args[0] is x
    assert call.args[1]["y"][0] is x
    assert call.kwargs == {"z": None}


def test_untouched_alone_guards_a_block():
    net = nn.BatchNorm1d(2)
    with untouched(net):
        for _ in range(3):
            net(torch.randn(4, 2))
    assert net.num_batches_tracked.item() == 0

    def fail():
        assert not net.training
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"), untouched(net, mode="eval"):
        fail()
    assert net.training


def test_recurrent_and_functional_dropout_are_replayed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(3, 4, 2, dropout=0.5, batch_first=True)

        def forward(self, x):
            return F.dropout(self.rnn(x)[0], 0.5, self.training)

    net = Net()
    x = torch.randn(2, 5, 3)
    call = record_call((x,), {})
    output = net(x)
    assert torch.allclose(replay(net, call), output, atol=1e-6)
    assert torch.equal(replay(net, call) == 0, output == 0)


def test_generators_of_the_modules_own_are_put_back():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.torch, self.python = torch.Generator(), random.Random(1)
            self.numpy, self.legacy = np.random.default_rng(1), np.random.RandomState(1)

        def forward(self, x):
            noise = self.python.random() + self.numpy.random() + self.legacy.normal()
            return x + noise + torch.rand(1, generator=self.torch)

    net, x = Noisy(), torch.zeros(1)
    first = replay(net, record_call((x,), {}))
    assert torch.equal(replay(net, record_call((x,), {})), first)
    assert torch.equal(net(x), first)
    assert not torch.equal(net(x), first)


def test_a_cheap_call_repeats_torch_only():
    class Both(nn.Module):
        def forward(self, x):
            return x + torch.rand(1), random.random()

    net = Both()
    call = record_call((torch.zeros(1),), {}, python=False, numpy=False)
    (first, other), (again, another) = net(call.args[0]), replay(net, call)
    assert torch.equal(first, again)
    assert other != another
