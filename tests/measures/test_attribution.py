from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from holdfast.core.errors import InputError, StatisticError
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.live.feature_reader import FeatureReader
from holdfast.live.hooks import HookSet
from holdfast.live.inner import inner_model
from holdfast.live.moment import Moment
from holdfast.live.replay import record_call, replay
from holdfast.live.structure import extract
from holdfast.measures import WATCHABLE
from holdfast.measures.attribution import Attribution, attribution, take
from holdfast.measures.parameter_drift import parameter_drift
from holdfast.stats.features import Features


class Hard(nn.Module):
    """Batch statistics, dropout, a recurrent layer with flat weights, attention, a parametrisation, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.place = nn.Parameter(torch.randn(5, 8))
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.mix = weight_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 20)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.place
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.recurrent(x)[0].mean(1)
        return self.head(self.mix(self.drop(self.norm(x)).relu_()))


@pytest.fixture
def stepped() -> tuple[nn.Module, torch.Tensor, dict[str, torch.Tensor], torch.optim.Optimizer]:
    """The model after a step of its optimiser, its batch, its parameters before."""
    torch.manual_seed(0)
    model, tokens = Hard(), torch.randint(20, (16, 5))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model(tokens).square().mean().backward()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    optimizer.step()
    return model, tokens, before, optimizer


def state(model: nn.Module) -> dict[str, object]:
    found: dict[str, object] = {"torch": torch.get_rng_state().tolist(), "python": random.getstate()}
    found["numpy"] = np.random.get_state()[1].tolist()
    for name, each in model.state_dict(keep_vars=True).items():
        grad = None if each.grad is None else (id(each.grad), each.grad.tolist())
        found[name] = (id(each), each._version, each.tolist(), grad, each.requires_grad)
    for name, module in model.named_modules():
        found[f"{name}()"] = (module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
    return found


def test_nothing_is_left_behind_bit_for_bit(stepped):
    model, tokens, before, _ = stepped
    was = state(model)
    found = attribution(model, tokens, before=before)
    assert state(model) == was
    assert any(found.drift.values[-1])


def test_nothing_is_left_behind_when_the_forward_raises(stepped):
    model, tokens, before, _ = stepped
    was = state(model)
    calls = []

    def sometimes(module, args):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("planted")

    handle = model.norm.register_forward_pre_hook(sometimes)
    with pytest.raises(RuntimeError, match="planted"):
        attribution(model, tokens, before=before)
    handle.remove()
    assert state(model) == was


def test_a_graph_that_was_made_before_can_still_be_walked_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    x = torch.randn(8, 3)
    loss = model(x).square().mean()
    attribution(model, x, {"1.weight": torch.ones(1, 3)})
    loss.backward()
    assert model[0].weight.grad is not None


def test_training_goes_on_as_if_nobody_had_looked(stepped):
    model, tokens, _, _ = stepped
    twin = copy.deepcopy(model)
    twin.head.weight = twin.embed.weight
    ends = []
    for each, looked in ((model, False), (twin, True)):
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(each.parameters(), 0.01)
        for _ in range(2):
            before = {name: parameter.detach().clone() for name, parameter in each.named_parameters()}
            optimizer.zero_grad()
            each(tokens).square().mean().backward()
            optimizer.step()
            if looked:
                attribution(each, tokens, before=before)
        ends.append({name: value.tolist() for name, value in each.state_dict().items()})
    assert ends[0] == ends[1]


def test_layers_are_those_that_hold_the_parameters_in_the_order_of_execution(stepped):
    model, tokens, before, _ = stepped
    found = attribution(model, tokens, before=before, step=7)
    layers = ("embed", "place", "attention", "recurrent", "norm", "mix", "head")
    assert found.layers == layers
    assert found.effect.columns == (*layers, "all", "interaction")
    for table, name in zip(found, ("attribution", "attribution-drift", "attribution-floor"), strict=True):
        assert (table.measure, table.step, table.unit, table.n) == (name, 7, Unit.REFERENCE_SD, 16)
        assert table.rows == found.effect.rows
        assert len(table.values) == len(table.rows)
        assert {len(row) for row in table.values} == {9}
    # Every layer's solo update reaches the output: each pass held another layer's new values, flat weights included.
    last = found.drift.values[-1]
    assert Site.parse(found.drift.rows[-1]) == Site("head", "output")
    assert all(cell > 0 for cell in found.floor.values[-1])
    # The tied weight is the embedding's: alone, the head's update is that of its bias.
    after = before | {"head.bias": model.head.bias.detach()}
    alone = attribution(model, tokens, before=before, after=after)
    column = found.drift.columns.index("head")
    assert [any(cells) for cells in zip(*alone.drift.values, strict=True)].index(True) == column
    assert alone.drift.values[-1][column] == pytest.approx(last[column], rel=1e-6)


def test_a_watch_that_is_attached_does_not_take_the_passes_for_its_own(stepped):
    model, tokens, before, _ = stepped
    seen = []
    hooks = HookSet()
    hooks.post(model, lambda *_: seen.append(1))
    hooks.attach()
    attribution(model, tokens, before=before)
    assert seen == []
    model(tokens)
    assert seen == [1]
    hooks.close()


class Block(nn.Module):
    """Normalised, in place, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.norm(self.conv(x)))
        y += x
        return y


def test_it_is_what_plain_passes_of_changed_copies_give(stepped):
    torch.manual_seed(0)
    images = nn.Sequential(nn.Conv2d(3, 4, 3), Block(), nn.Dropout2d(0.2), Block(), nn.Flatten(), nn.Linear(144, 2))
    change = {name: 0.1 * torch.randn_like(each) for name, each in images.named_parameters()}
    model, tokens, before, _ = stepped
    after = {name: each.detach().clone() for name, each in model.named_parameters()}
    for net, x, old, new in (
        (images, torch.randn(16, 3, 8, 8), dict(images.named_parameters()), None),
        (model, tokens, before, after),
    ):
        old = {name: each.detach().clone() for name, each in old.items()}
        new = new or {name: old[name] + change[name] for name in old}
        call = record_call((x,), {})
        found = attribution(net, call, before=old, after=new)
        held = {name: found.layers.index(_layer(name, found.layers)) for name in old}
        structure = extract(net, call=call)

        def seen(values: dict[str, torch.Tensor], net=net, call=call, structure=structure) -> dict[Site, Features]:
            copied = copy.deepcopy(net)
            copied.load_state_dict(values, strict=False)
            with FeatureReader(copied, structure) as reader:
                replay(copied, call)
            return reader.found

        reference = seen(old)
        for column, layer in enumerate([*found.layers, "all"]):
            own = {name: new[name] for name in old if layer == "all" or held[name] == column}
            for site, now in seen({**old, **own}).items():
                want = parameter_drift(reference[site], now, site=site, step=0, lag=1)
                cell = found.cells(site)[column]
                if want is None:
                    assert math.isnan(cell.drift)
                else:
                    assert cell.drift == pytest.approx(want.value, rel=1e-4, abs=1e-7)


def _layer(name: str, layers: tuple[str, ...]) -> str:
    return max((each for each in layers if name == each or name.startswith(f"{each}.")), key=len)


def test_what_runs_before_the_layer_does_not_run_again():
    class Counted(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counted.calls += 1
            return super().forward(x)

    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Sequential(Counted(4, 4), nn.Tanh()) for _ in range(10)))
    x = torch.randn(8, 4)
    structure = extract(net, call=record_call((x,), {}))
    Counted.calls = 0
    attribution(net, x, {name: torch.ones_like(each) for name, each in net.named_parameters()}, structure=structure)
    # Old, old again, new: 30. With the update of layer k alone, k = 1 … 10: 11 − k layers, 55 together (of 100).
    assert Counted.calls == 85


def test_a_parameter_that_the_forward_does_not_use_moves_nothing():
    net = nn.Sequential()
    net.add_module("0", nn.Linear(3, 2))
    net.add_module("idle", nn.Identity())
    net.idle.weight = nn.Parameter(torch.ones(2))
    found = attribution(net, torch.randn(8, 3) + 1, {"0.bias": torch.ones(2), "idle.weight": torch.ones(2)})
    assert found.layers == ("0", "idle")
    assert [bool(each) for each in found.drift.values[-1]] == [True, False, True, False]


@pytest.mark.parametrize("training", [True, False])
def test_the_three_ways_to_tell_an_update_agree(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.ReLU(), nn.Linear(6, 2))
    model.train(training)
    x = torch.randn(16, 4)
    old = {name: each.detach().clone() for name, each in model.named_parameters()}
    new = {name: each + 0.125 * each.sign() for name, each in old.items()}
    change = {name: new[name] - old[name] for name in old}
    torch.manual_seed(1)
    by_update = attribution(model, x, change)
    by_both = attribution(model, x, before=old, after=new)
    model.load_state_dict(new, strict=False)
    by_before = attribution(model, x, before=old | {"1.running_mean": torch.ones(6)})
    for found in (by_both, by_before):
        for table, same in zip(found, by_update, strict=True):
            assert table.rows == same.rows
            np.testing.assert_allclose(table.values, same.values, rtol=1e-3, atol=1e-5)
    assert {Site.parse(row).phase for row in by_update.effect.rows} == {"train" if training else "eval"}


def test_values_that_are_the_parameters_own_memory_are_read_before_it_is_written_to():
    model = nn.Linear(2, 2, bias=False)
    x = torch.randn(8, 2) + 1
    old, new = {"weight": model.weight.detach() / 2}, {"weight": model.weight.data}
    assert attribution(model, x, before=old, after=new) == attribution(model, x, before=old)
    assert attribution(model, x, before=new, after=old).drift.values[-1][0] > 0


def test_a_site_without_a_unit_has_no_figure():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].bias.fill_(-100)
    found = attribution(model, torch.randn(8, 3), {"0.bias": torch.ones(3), "2.weight": torch.ones(2, 3)})
    dead = found.drift.rows.index(str(Site("1", "output")))
    assert all(math.isnan(cell) for table in found for cell in table.values[dead])
    assert found.drift.values[found.drift.rows.index(str(Site("0", "output")))][0] > 0


def test_a_sample_that_is_not_finite_is_left_out_and_the_rest_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    x, update = torch.randn(9, 3), {"0.bias": torch.ones(3), "1.bias": torch.ones(2)}
    clean = attribution(model, x[1:], update)
    x[0] = math.nan
    broken = attribution(model, x, update)
    np.testing.assert_allclose(broken.drift.values, clean.drift.values, rtol=1e-5, atol=1e-6)
    assert broken.drift.n == clean.drift.n == 8


def test_an_update_that_breaks_one_site_alone_gives_no_figure_there():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    x, update = torch.randn(9, 3), {"0.bias": torch.full((3,), math.inf), "1.bias": torch.ones(2)}
    found = attribution(model, x, update)
    assert all(math.isnan(cell) for cell in found.drift.values[-1])
    assert found.drift.values[0] == (0, 0, 0, 0)


def test_within_noise_is_told_by_the_floor():
    """An update that moves every sample at random and their mean hardly at all."""
    torch.manual_seed(0)
    model = nn.Linear(6, 6, bias=False)
    x = torch.randn(64, 6)
    x -= x.mean(0)
    found = attribution(model, x, {"weight": 0.1 * torch.randn(6, 6)})
    assert found.drift.values[-1][0] <= found.floor.values[-1][0]
    shifted = attribution(model, x + 1, {"weight": 0.1 * torch.randn(6, 6)})
    assert shifted.drift.values[-1][0] > shifted.floor.values[-1][0] > 0


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "expected an update, told once; got none"),
        ({"update": {}, "before": {}}, "got update and before"),
        ({"update": {}}, "the update of at least one parameter, by its name; got an empty one"),
        ({"update": {"weight": 0.1}}, "values of shape (2, 3) for 'weight'; got a float"),
        ({"update": {"nobody": torch.ones(1)}}, "'nobody'; take them from model.named_parameters"),
        ({"update": {"weight": torch.ones(3)}}, "values of shape (2, 3) for 'weight'; got shape (3,)"),
        ({"before": {"weight": torch.ones(2, 3)}, "after": {}}, "the same before and after; got 'weight'"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_mistaken_update_is_refused(told, message):
    with pytest.raises(InputError) as error:
        attribution(nn.Linear(3, 2), torch.randn(4, 3), **told)
    assert message in str(error.value)


def test_one_sample_is_refused():
    with pytest.raises(StatisticError, match="at least two samples"):
        attribution(nn.Linear(3, 2), torch.randn(1, 3), {"weight": torch.ones(2, 3)})


def test_a_forward_that_never_gives_the_same_twice_is_refused():
    class Restless(nn.Module):
        generator = torch.Generator()  # on the class, where no replay looks

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand(x.shape, generator=self.generator)

    model = nn.Sequential(Restless(), nn.Linear(3, 2))
    with pytest.raises(InputError, match="a forward that gives the same twice") as error:
        attribution(model, torch.randn(4, 3), {"1.weight": torch.ones(2, 3)})
    assert "the output of '0'" in str(error.value)


def test_a_watch_takes_it_for_the_step_just_done(stepped):
    model, tokens, before, _ = stepped
    watchable = WATCHABLE["attribution"]
    assert watchable.needs == {"before", "call"}
    call = record_call((tokens,), {})
    moment = Moment(model, 3, "mine", before=before, call=call)
    tables = watchable.start()(moment)
    assert tables == list(attribution(inner_model(model), call, before=before, step=3, stream="mine"))
    assert isinstance(Attribution(*tables).effect.rows, tuple)
    assert {Site.parse(row).stream for row in tables[0].rows} == {"mine"}
    tokens.zero_()  # the batch's memory was used again
    assert take(moment) == []
