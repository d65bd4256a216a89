"""What holds for every measure that a stored run is enough for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import holdfast as hf
from holdfast.core.errors import InputError
from holdfast.core.reading import Reading
from holdfast.measures import OFFLINE, QUANTITIES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 130 steps, with a spike at step 120."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "run"
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = torch.Generator().manual_seed(1)
    with hf.watch(model, optimizer, run=folder, every=5, probe_every=20, probe=torch.randn(64, 6, generator=data)):
        for step in range(1, 131):
            x = torch.randn(32, 6, generator=data)
            optimizer.zero_grad()
            (F.mse_loss(model(x), x[:, :3]) * (1000.0 if step == 120 else 1.0)).backward()
            optimizer.step()
    with hf.Run(folder) as opened:
        yield opened


@pytest.mark.parametrize("name", sorted(OFFLINE))
def test_it_gives_readings_with_unit_and_size(name, run):
    found = run.measure(name)
    assert found, f"{name} gave nothing for 130 steps"
    for each in found:
        assert each.measure in QUANTITIES
        assert each.n > 0
        if isinstance(each, Reading):
            low, high = QUANTITIES[each.measure].bounds
            assert low <= each.value <= high
            assert 1 <= each.step <= run.steps
            assert each.unit == QUANTITIES[each.measure].unit
    assert run.measure(name) == found


def test_a_spike_that_was_planted_is_found(run):
    assert 120 in {each.step for each in run.measure("spikes")}


def test_what_a_run_is_not_enough_for_is_told(run):
    with pytest.raises(InputError, match=r"type: hf.watch\(model, optimizer, measures=\['gradient-ics'\]\)"):
        run.measure("gradient-ics")
    with pytest.raises(InputError, match=r"choose of .*path-length"):
        run.measure("nonsense")


def test_what_a_watch_took_is_given_as_it_was_taken(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hf.watch(model, optimizer, run=tmp_path / "run", every=1, measures=["attribution"], strict=True) as run:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    assert [(table.measure, table.step) for table in run.measure("attribution")] == [
        ("attribution", 1),
        ("attribution", 2),
    ]
    drifts = run.measure("parameter-drift")
    assert drifts
    assert drifts == list(run.history.readings("parameter-drift"))
