from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from holdfast.integrations.streams import Streams
from holdfast.monitor.watch import Watch, watched
from holdfast.store.memory import MemoryRun


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Pair(nn.Module):
    """A holder with a forward of its own, of which its user calls the parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.head = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Opened:
    """Streams that record into memory, one run a stream."""

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}
        self.models: dict[str, nn.Module] = {}
        self.streams = Streams(self.open)

    def open(self, model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> Watch:
        self.models[name] = model
        self.runs[name] = MemoryRun()
        return Watch(
            model, optimizer, lambda: self.runs[name], name="run", stream=name, every=1, guest=True, strict=True
        )

    def steps(self) -> dict[str, int]:
        """Steps by stream, of those that saw any."""
        self.streams.close()
        return {name: run.steps for name, run in self.runs.items() if run.steps}


@pytest.fixture
def opened() -> Iterator[Opened]:
    found = Opened()
    yield found
    found.streams.close()


def sgd(*modules: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD([each for module in modules for each in module.parameters()], lr=0.1)


def step(model: nn.Module, *optimizers: torch.optim.Optimizer, times: int = 1) -> None:
    for _ in range(times):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def test_one_model_is_net(opened: Opened) -> None:
    model = Pair()
    optimizer = sgd(model.head)
    assert opened.streams.add(optimizer)
    step(model, optimizer, times=2)
    assert opened.models == {"net": model}
    assert opened.steps() == {"net": 2}


def test_two_models_are_named_by_class_and_the_first_is_renamed(opened: Opened) -> None:
    one, two, plain = Generator(), Generator(), nn.Sequential(nn.Linear(3, 3))
    optimizers = [sgd(each) for each in (one, two, plain)]
    for optimizer in optimizers:
        opened.streams.add(optimizer)
    for model, optimizer in zip((one, two, plain), optimizers, strict=True):
        step(model, optimizer)
    assert opened.steps() == {"Generator": 1, "Generator-2": 1, "Sequential": 1}


def test_a_model_of_a_torch_class_goes_by_its_global_name(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    import __main__

    actor, critic = nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 1))
    monkeypatch.setattr(__main__, "actor", nn.DataParallel(actor), raising=False)
    optimizers = [sgd(actor), sgd(critic)]
    for optimizer in optimizers:
        opened.streams.add(optimizer)
    step(actor, optimizers[0])
    step(critic, optimizers[1])
    assert opened.steps() == {"actor": 1, "Sequential": 1}


def test_a_name_with_steps_is_kept(opened: Opened) -> None:
    one = Generator()
    optimizer = sgd(one)
    opened.streams.add(optimizer)
    step(one, optimizer, times=3)
    two = Generator()
    later = sgd(two)
    opened.streams.add(later)
    step(two, later)
    assert opened.steps() == {"net": 3, "Generator": 1}


def test_several_models_of_one_optimiser_are_a_stream_each(opened: Opened) -> None:
    small, large = Generator(), Pair()
    optimizer = sgd(small, large)
    opened.streams.add(optimizer)
    optimizer.zero_grad()
    large(small(torch.randn(8, 3))).square().mean().backward()
    optimizer.step()
    assert list(opened.models) == ["Pair", "Generator"]
    assert opened.steps() == {"Pair": 1, "Generator": 1}
    losses = [opened.runs[name].values("loss", name)[1].tolist() for name in ("Pair", "Generator")]
    assert losses[0] == losses[1]
    assert losses[0]


def test_optimisers_with_parts_of_their_own_watch_the_parts(opened: Opened) -> None:
    model = Pair()
    optimizers = [sgd(model.body), sgd(model.head)]
    for optimizer in optimizers:
        opened.streams.add(optimizer)
    step(model, *optimizers, times=2)
    assert opened.steps() == {"body": 2, "head": 2}
    assert (opened.models["body"], opened.models["head"]) == (model.body, model.head)
    # Both follow the gradient of one backward pass.
    assert (
        opened.runs["body"].values("loss", "body")[1].tolist() == opened.runs["head"].values("loss", "head")[1].tolist()
    )


def test_interleaved_optimisers_watch_the_whole_model_twice_and_do_not_read_each_others_probes(opened: Opened) -> None:
    model = Pair()
    matrices = torch.optim.SGD([each for each in model.parameters() if each.ndim > 1], lr=0.1)
    rest = torch.optim.Adam([each for each in model.parameters() if each.ndim < 2])
    opened.streams.add(matrices)
    opened.streams.add(rest)
    step(model, matrices, rest, times=6)
    assert opened.steps() == {"Pair": 6, "Pair-2": 6}
    for name in ("Pair", "Pair-2"):
        run = opened.runs[name]
        assert not run.events("monitor-error")
        # A replay of the other's would be a pass of its own: an evaluation, or a second call of the layer.
        assert {site.phase for site in run.sites()} == {"train"}
        assert {site.call for site in run.sites()} == {0}
        site = next(site for site in run.sites(port="input") if site.module == "head")
        assert {summary.moments.count for _, summary in run.summaries(site)} == {24}
        assert run.readings("parameter-drift", site)


def test_a_later_optimiser_of_the_same_parameters_continues_the_stream(opened: Opened) -> None:
    model = Generator()
    for rate in (0.1, 0.2, 0.3):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        opened.streams.add(optimizer)
        step(model, optimizer, times=2)
    assert opened.steps() == {"net": 6}
    assert opened.runs["net"].values("learning-rate")[1].tolist() == [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]


def test_optimisers_that_take_turns_share_the_stream(opened: Opened) -> None:
    model = Generator()
    one, two = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model.parameters(), lr=0.2)
    opened.streams.add(one)
    opened.streams.add(two)
    for optimizer in (one, two, one):
        step(model, optimizer)
    assert opened.steps() == {"net": 3}
    assert opened.runs["net"].values("learning-rate")[1].tolist() == [0.1, 0.2, 0.1]


def test_a_step_within_a_step_counts_once(opened: Opened) -> None:
    class Wrapping(torch.optim.Optimizer):
        def __init__(self, parameters: object) -> None:
            super().__init__(parameters, {"lr": 0.1})  # type: ignore[arg-type]
            self.base = torch.optim.SGD(self.param_groups, lr=0.1)

        def step(self, closure: object = None) -> None:  # type: ignore[override]
            self.base.step()

    model = Generator()
    optimizer = Wrapping(model.parameters())
    opened.streams.add(optimizer)
    opened.streams.add(optimizer.base)
    step(model, optimizer, times=3)
    assert opened.steps() == {"net": 3}


def test_models_are_let_go(opened: Opened) -> None:
    for _ in range(3):
        model = Generator()
        optimizer = sgd(model)
        opened.streams.add(optimizer)
        step(model, optimizer)
    opened.models.clear()
    del optimizer
    model_left = len([each for each in gc.get_objects() if type(each) is Generator])
    del model
    gc.collect()
    assert len([each for each in gc.get_objects() if type(each) is Generator]) < model_left
    assert not [each for each in gc.get_objects() if type(each) is Generator]
    assert opened.steps() == {"net": 1, "Generator": 1, "Generator-2": 1}


def test_beyond_the_most_streams_models_are_counted_only(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.integrations.streams.MOST", 2)
    models = [nn.Linear(1, 1) for _ in range(5)]
    for model in models:
        opened.streams.add(sgd(model))
    assert opened.streams.left_out == 3
    assert [watched(model) for model in models] == [True, True, False, False, False]


def test_a_watch_of_the_scripts_own_comes_first(opened: Opened) -> None:
    model = Generator()
    optimizer = sgd(model)
    opened.streams.add(optimizer)
    own = MemoryRun()
    watch = Watch(model, optimizer, lambda: own, name="own", every=1)
    step(model, optimizer)
    watch.close()
    assert own.steps == 1
    assert opened.steps() == {}


def test_loose_parameters_have_no_model(opened: Opened) -> None:
    assert not opened.streams.add(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1))
