from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.live.replay import record_call
from holdfast.monitor.first_samples import first_samples, samples_wanted


def test_a_number_is_not_a_batch() -> None:
    assert samples_wanted(64) == 64
    assert samples_wanted(0) == 0
    assert samples_wanted(None) is None
    assert samples_wanted(torch.ones(3)) is None
    assert samples_wanted(True) is None
    with pytest.raises(InputError, match=r"got probe=-1; type: probe=64"):
        samples_wanted(-1)


def test_every_tensor_is_cut_and_copied() -> None:
    batch = {
        "ids": torch.arange(12).reshape(6, 2),
        "mask": [torch.ones(6, dtype=torch.bool)],
        "scale": torch.tensor(3.0),
    }
    call = record_call((batch,), {"labels": torch.arange(6), "flag": True})
    cut = first_samples(call, 4)
    assert not isinstance(cut, str)
    ((seen,), kwargs) = cut.args, cut.kwargs
    assert seen["ids"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert seen["mask"][0].shape == (4,)
    assert seen["scale"].item() == 3
    assert kwargs["labels"].tolist() == [0, 1, 2, 3]
    assert kwargs["flag"] is True
    batch["ids"].zero_()  # a loader may use the batch's memory again
    assert seen["ids"][0, 1] == 1


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ((torch.ones(5, 2), torch.ones(4, 2)), r"do not all have the samples on axis 0 \(sizes 4, 5\)"),
        ((SimpleNamespace(x=torch.ones(5)),), "not called with tensors"),
        ((torch.ones(0, 2),), "empty"),
    ],
)
def test_what_cannot_be_cut_is_told(args: tuple[object, ...], reason: str) -> None:
    told = first_samples(record_call(args, {}), 3)
    assert isinstance(told, str)
    pytest.importorskip("re").search(reason, told) or pytest.fail(told)


def steps(model, optimizer, count=6, samples=20):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        inputs = torch.randn(samples, 4, generator=generator)
        optimizer.zero_grad()
        F.mse_loss(model(inputs), inputs[:, :2]).backward()
        optimizer.step()


def test_the_probe_is_the_first_batch_and_the_weights_stay_what_they_were(record):
    def run(watched: bool):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recording = record(model, optimizer, probe=8) if watched else None
        steps(model, optimizer)
        if recording is not None:
            history = recording.close()
            assert not history.events("monitor-error")
            drifts = [each for each in history.readings("parameter-drift") if each.site.phase == "probe"]
            assert drifts
            assert {each.n for each in drifts} == {8}
        return model.state_dict(), torch.get_rng_state()

    (watched, watched_random), (bare, bare_random) = run(True), run(False)
    assert all(torch.equal(watched[name], value) for name, value in bare.items())
    assert torch.equal(watched_random, bare_random)


def test_a_batch_that_cannot_be_cut_leaves_a_note(record):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, inputs, weights):
            return self.layer(inputs) * weights.mean()

    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, probe=8)
    for _ in range(3):
        model(torch.randn(10, 4), torch.ones(3)).sum().backward()
        optimizer.step()
    history = recording.close()
    (note,) = history.events("monitor-error")
    assert note.message.startswith("no fixed probe: the model's arguments do not all have the samples on axis 0")
    assert not [each for each in history.readings("parameter-drift") if each.site.phase == "probe"]
