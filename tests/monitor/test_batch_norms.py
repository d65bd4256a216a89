import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from holdfast import norms
from holdfast.core.site import Site
from holdfast.live.layout import block
from holdfast.measures.train_eval_gap import train_eval_gap
from holdfast.monitor import batch_norms
from holdfast.monitor.batch_norms import batch_statistics
from holdfast.monitor.observer import Observer
from holdfast.monitor.roles import Roles
from holdfast.norms import GhostBatchNorm
from holdfast.stats.batch_statistics import BatchStatistics


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def read(module, x, max_elements=None, where=0.0):
    return batch_statistics(module, x, max_elements=max_elements, where=where)


def net(seed=0, **settings):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, **settings), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3)
    )


def step(model, optimizer, k, batch=16):
    optimizer.zero_grad()
    F.cross_entropy(model(normal(batch, 1, 6, 6, seed=k)), torch.arange(batch) % 3).backward()
    optimizer.step()


def test_reads_the_buffers_as_they_stand_and_keeps_copies():
    norm = nn.BatchNorm1d(3, momentum=0.2, eps=1e-3).double()
    norm(normal(8, 3).double())
    seen = read(norm, normal(8, 3, seed=1).double())
    before = copy.deepcopy(norm)
    norm(normal(8, 3, seed=1).double())
    assert seen.running.mean.tolist() == before.running_mean.tolist()
    assert seen.running.variance.tolist() == before.running_var.tolist()
    assert (seen.running.eps, seen.running.noise) == (1e-3, pytest.approx(0.2 / 1.8))
    assert (seen.samples, seen.own) == (8, True)


def test_a_plain_average_grows_steadier():
    norm = nn.BatchNorm1d(3, momentum=None)
    assert read(norm, normal(8, 3)).running.noise == 1
    for _ in range(4):
        norm(normal(8, 3))
    assert read(norm, normal(8, 3)).running.noise == 0.25


def test_who_normalises_with_what():
    assert not read(nn.BatchNorm1d(3).eval(), normal(8, 3)).own
    untracked = read(nn.BatchNorm1d(3, track_running_stats=False).eval(), normal(8, 3))
    assert untracked.own
    assert untracked.running is None
    assert read(GhostBatchNorm(3, chunk_size=4), normal(17, 3)).samples == 4
    assert read(nn.InstanceNorm1d(3), normal(8, 3, 4)) is None


@pytest.mark.parametrize("where", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("shape", [(64, 100, 9, 9), (3, 64, 40, 40), (5000, 64), (2, 16, 200, 200), (40, 17, 33)])
def test_a_part_of_a_large_batch_speaks_for_the_whole(shape, where):
    norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1])
    x = normal(*shape)
    part = read(norm, x, 16_384, where)
    step = -(-shape[1] // part.channels)
    channels = np.arange(shape[1])[::step]
    assert part.samples == shape[0]
    assert part.read >= min(shape[0], 8)
    assert len(part.running.mean) == part.channels == len(channels)
    whole = BatchStatistics.of(x.flatten(2) if len(shape) > 2 else x[..., None])
    off = part.mean - whole.mean[channels]
    assert np.mean(off**2) < 3 * np.mean(part.mean_error) + 1e-12


def test_each_pass_trained_on_is_read_once_and_no_other(record):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recording = record(model, optimizer, every=1, probe=normal(4, 1, 6, 6))
    for k in range(12):
        step(model, optimizer, k)
        model.eval()(normal(8, 1, 6, 6))  # with gradient, and not trained on
        model.train()
    history = recording.close()
    site = Site("1", "input")
    for measure, count in (("batch-noise", 12), ("train-eval-gap", 12), ("running-lag", 2)):
        assert {each.site for each in history.readings(measure)} == {site}
        assert len(history.readings(measure)) == count
    assert [each.step for each in history.readings("running-lag")] == [5, 10]
    assert {each.n for each in history.readings("batch-noise")} == {16}


def test_training_in_eval_mode_is_read_as_such(record):
    model = net().eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    recording = record(model, optimizer, every=1)
    for k in range(5):
        step(model, optimizer, k)
    history = recording.close()
    (reading,) = history.readings("running-lag")
    assert reading.site == Site("1", "input", phase="eval")
    assert not history.readings("batch-noise")
    assert not history.readings("train-eval-gap")


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputation_is_not_read_again(record, reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 1, 1)
            self.inner = net()

        def forward(self, x):
            return checkpoint(self.inner, self.stem(x), use_reentrant=reentrant)

    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    recording = record(model, optimizer, every=1)
    step(model, optimizer, 0)
    history = recording.close()
    (reading,) = history.readings("train-eval-gap")
    fresh = Checkpointed()
    fresh.load_state_dict({**model.state_dict(), **{k: v for k, v in fresh.state_dict().items() if "running" in k}})
    seen = read(fresh.inner[1], fresh.inner[0](fresh.stem(normal(16, 1, 6, 6, seed=0))))
    assert reading.value == pytest.approx(train_eval_gap(seen, site=reading.site, step=1).value, rel=1e-5)


def test_a_network_without_batch_normalisers_has_none_of_its_hooks():
    def hooks(*layers):
        leaves = [(str(k), layer) for k, layer in enumerate(layers)]
        observer = Observer(leaves, stream="net", max_elements=None, roles=Roles(), failed=print)
        observer.attach()
        count = sum(len(layer._forward_pre_hooks) for layer in layers)
        observer.close()
        return count

    assert hooks(nn.Linear(2, 2), nn.LayerNorm(2)) == 2
    assert hooks(nn.Linear(2, 2), nn.BatchNorm1d(2)) == 3


def seen_by(norm, x):
    """What an observer keeps of one training pass, and how often the normaliser's input was read for it."""
    failures = []
    observer = Observer(
        [("norm", norm)], stream="net", max_elements=None, roles=Roles(), failed=lambda *each: failures.append(each)
    )
    observer.begin_pass("train", reading=False, trained_on=True)
    observer.attach()
    norm(x)
    observer.detach()
    assert not failures
    return observer.normalised[Site("norm", "input")]


@pytest.mark.parametrize("shape", [(16, 8, 33, 33), (4, 8, 5, 60, 7), (6, 3, 20_000)], ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("chunk", [0, 3])
def test_a_layer_that_tells_its_statistics_is_not_read(monkeypatch, shape, last, chunk):
    monkeypatch.setenv("HOLDFAST_KERNELS", "compiled")  # at any size
    theirs = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](shape[1])
    nn.init.uniform_(theirs.running_mean)
    ours = norms.make("ghost" if chunk else "batch", shape[1], len(shape) - 2, **({"chunk_size": 3} if chunk else {}))
    ours.load_state_dict(theirs.state_dict())
    x = normal(*shape) * 3 + 5
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    reads = []
    monkeypatch.setattr(batch_norms, "block", lambda *args: reads.append(args) or block(*args))
    expected = seen_by(theirs, x)
    assert len(reads) == 1
    told = seen_by(ours, x)
    assert len(reads) == 1
    for name in ("mean", "spread", "variance", "mean_error", "variance_error"):
        np.testing.assert_allclose(getattr(told, name), getattr(expected, name), rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(told.running.mean, expected.running.mean)  # as they stood before the batch
    assert told.samples == (len(x) // max(1, len(x) // chunk) if chunk else expected.samples)


def test_a_layer_that_does_not_tell_samples_apart_is_read(monkeypatch):
    reads = []
    monkeypatch.setattr(batch_norms, "block", lambda *args: reads.append(args) or block(*args))
    x = normal(16, 4)
    ours, theirs = norms.BatchNorm1d(4), nn.BatchNorm1d(4)
    np.testing.assert_allclose(seen_by(ours, x).variance, seen_by(theirs, x).variance, rtol=1e-6)
    assert seen_by(ours.eval(), x).own is False
    assert len(reads) == 3
