"""Measures that a user asks a watch for."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import holdfast as hf
from holdfast.core.errors import InputError
from holdfast.core.reading import Reading, Table
from holdfast.core.site import Site
from holdfast.live.moment import Watchable
from holdfast.measures import WATCHABLE
from holdfast.monitor.asked import STANDING


@pytest.fixture
def moments(monkeypatch):
    """A measure that keeps the moments it is given, one that fails, and one that counts its steps."""
    seen = []

    def keep(moment):
        seen.append(moment)
        moved = max(
            float((moment.before[name] - now.detach()).abs().max()) for name, now in moment.model.named_parameters()
        )
        loss = float(moment.loss_fn(moment.model(moment.batch[0]), moment.batch[1]).detach())
        return [
            Reading("kept", Site("", "output", stream=moment.stream), moment.step, moved, "ratio", 1),
            Table("kept-table", moment.step, "loss", ("loss",), ("value",), ((loss,),), 8),
        ]

    def fail(moment):
        raise ArithmeticError("never again")

    def counting():
        steps = []

        def count(moment):
            steps.append(moment.step)
            return [Reading("counted", Site("", "output"), moment.step, float(len(steps)), "count", 1)]

        return count

    everything = frozenset({"before", "call", "loss", "optimizer"})
    monkeypatch.setitem(WATCHABLE, "kept", Watchable(lambda: keep, everything))
    monkeypatch.setitem(WATCHABLE, "failing", Watchable(lambda: fail, frozenset()))
    monkeypatch.setitem(WATCHABLE, "counted", Watchable(counting, frozenset({"call"})))
    return seen


def training(folder, steps, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = torch.randn(8, 4), torch.randint(0, 3, (8,))
    with hf.watch(model, optimizer, run=folder, batch=held, loss_fn=F.cross_entropy, **options):
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(16, 4)), torch.randint(0, 3, (16,))).backward()
            optimizer.step()
    return model


def test_a_measure_gets_the_step_from_both_sides_and_its_figures_are_stored(tmp_path, moments):
    model = training(tmp_path / "run", 6, every=3, measures=["kept", "parameter-drift"], strict=True)
    assert [moment.step for moment in moments] == [1, 3, 6]
    with hf.Run(tmp_path / "run") as run:
        moved = run.history.readings("kept")
        assert [each.step for each in moved] == [1, 3, 6]
        assert all(each.value > 0 for each in moved), "the parameters before the step are not those after it"
        tables = run.history.tables("kept-table")
        assert [table.step for table in tables] == [1, 3, 6]
        inputs, labels = moments[-1].batch
        assert tables[-1].values[0][0] == F.cross_entropy(model(inputs), labels).item()
        assert tables[0].values != tables[-1].values


def test_asking_changes_nothing_in_the_training(tmp_path, moments):
    plain = training(tmp_path / "plain", 6, every=3)
    asked = training(tmp_path / "asked", 6, every=3, measures=["kept", "counted"])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), asked.parameters(), strict=True))


def test_a_measure_that_gathers_over_steps_begins_anew_in_every_watch(tmp_path, moments):
    for name in ("one", "two"):
        training(tmp_path / name, 4, every=2, measures=["counted"], strict=True)
        with hf.Run(tmp_path / name) as run:
            assert [each.value for each in run.history.readings("counted")] == [1.0, 2.0, 3.0]


def test_a_measure_that_fails_is_left_out_and_the_others_go_on(tmp_path, moments):
    with pytest.warns(RuntimeWarning, match="failing failed and is left out from now on: ArithmeticError: never again"):
        training(tmp_path / "run", 4, every=2, measures=["failing", "counted"])
    with hf.Run(tmp_path / "run") as run:
        assert len(run.history.readings("counted")) == 3


def test_a_name_alone_is_a_list_of_one(tmp_path, moments):
    training(tmp_path / "run", 1, every=1, measures="counted", strict=True)
    with hf.Run(tmp_path / "run") as run:
        assert len(run.history.readings("counted")) == 1


class Gated(nn.Module):
    """Activations that hooks see and one that they do not, and streams that meet."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.act, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.sigmoid(self.a(x) + 1) * self.act(self.b(x)) + torch.tanh(self.a(x) - 1))


def test_figures_of_one_measurement_are_taken_once_and_none_twice(tmp_path):
    torch.manual_seed(0)
    model = Gated()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names = ["stream-share", "stream-rms", "stream-gradient", "saturated-fraction", "gate-saturation", "variance-rank"]
    held = torch.randn(8, 4), torch.randint(0, 3, (8,))
    watching = {"every": 1, "measures": names, "batch": held, "loss_fn": F.cross_entropy, "strict": True}
    with hf.watch(model, optimizer, run=tmp_path / "run", **watching):
        for _ in range(3):
            F.cross_entropy(model(torch.randn(64, 4)), torch.randint(0, 3, (64,))).backward()
            optimizer.step()
    with hf.Run(tmp_path / "run") as run:
        for name in [*names, "effective-rank", "stream-shift"]:
            keys = [(str(each.site), each.step) for each in run.history.readings(name)]
            assert keys, name
            assert len(keys) == len(set(keys)), name
        saturated = {each.site for each in run.history.readings("saturated-fraction")}
        assert saturated == {Site("act", "input"), Site("", "input", leaf="tanh")}
        assert {each.site.leaf for each in run.history.readings("stream-gradient")} == {"act+a", "a"}


def test_a_loss_that_is_missing_is_told_before_training(tmp_path, moments):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"no loss_fn and batch.*\n?.*loss_fn=loss_fn, batch=\(inputs, targets\)"):
        hf.watch(model, optimizer, run=tmp_path / "run", measures=["kept"])
    with pytest.raises(InputError, match="no loss_fn"):
        hf.watch(model, optimizer, run=tmp_path / "run", measures=["kept"], batch=(torch.ones(1, 2), torch.ones(1)))


def test_an_unknown_name_is_told_with_the_nearest_one(tmp_path, moments):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"type: measures=\['counted'\]"):
        hf.watch(model, optimizer, run=tmp_path / "run", measures=["countet"])


def test_measures_that_every_watch_takes_are_those_named_so(tmp_path):
    model = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Sigmoid(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with hf.watch(
        model, optimizer, run=tmp_path / "run", probe=torch.randn(64, 6), every=1, measures=sorted(STANDING)
    ) as run:
        for _ in range(12):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(32, 6)), torch.randint(0, 3, (32,))).backward()
            optimizer.step()
    with hf.Run(tmp_path / "run") as run:
        assert set(run.history.measures()) == STANDING


def test_what_no_watch_takes_is_told_where_to_find(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"type: hf.measures.maximum_learning_rate\("):
        hf.watch(model, optimizer, run=tmp_path / "run", measures=["maximum-learning-rate"])
    with pytest.raises(InputError, match=r"type afterwards: run.measure\('path-length'\)"):
        hf.watch(model, optimizer, run=tmp_path / "run", measures=["path-length"])


def test_the_time_of_the_steps_is_never_more_than_what_went_by(tmp_path):
    """It was: a dear step, at which settling ends, was taken for the length of all that passed unseen."""
    begin = time.perf_counter()
    training(tmp_path / "run", 900)
    lasted = time.perf_counter() - begin
    with hf.Run(tmp_path / "run") as run:
        account = run.history.events("cadence")[-1].data
    assert account["unseen"] > 100
    assert account["seconds"]["run"] <= lasted
