from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.reading import Table
from holdfast.live.moment import Moment
from holdfast.live.replay import record_call
from holdfast.measures import WATCHABLE
from holdfast.measures.activation_window import ActivationWindow


class Net(nn.Module):
    """A functional activation behind an addition, a gate, a rectifier and a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.rnn, self.drop = nn.Linear(3, 4), nn.Linear(3, 4), nn.GRU(4, 4, 2), nn.Dropout(0.5)

    def forward(self, x):
        x = torch.tanh(self.a(x) + self.b(x)) * torch.sigmoid(self.b(x))
        return F.relu(self.rnn(self.drop(x))[0])


def moment(model, x, step=1):
    return Moment(model, step, call=record_call((x,), {}))


def by_measure(found):
    groups = {}
    for each in found:
        if not isinstance(each, Table):
            groups.setdefault(each.measure, []).append(str(each.site).removeprefix("net/").removesuffix("@train"))
    return groups


def test_every_activation_is_measured_as_what_it_is():
    found = WATCHABLE["saturated-fraction"].start()(moment(Net(), torch.randn(6, 5, 3), step=7))
    assert by_measure(found) == {
        "saturated-fraction": [":input[tanh]#0", "rnn:output[l0.candidate]#0", "rnn:output[l1.candidate]#0"],
        "gate-saturation": [
            "b:output#1",
            *(f"rnn:output[l{k}.{gate}]#0" for k in (0, 1) for gate in ("reset", "update")),
        ],
        "dead-units": ["rnn:output#0"],
    }
    assert {each.step for each in found} == {7}
    assert {each.n for each in found} == {5}  # time comes first in a GRU that is not batch_first
    assert WATCHABLE["dead-units"] == WATCHABLE["gate-saturation"] == WATCHABLE["saturated-fraction"]


def test_closed_and_open_gates():
    net = Net()
    with torch.no_grad():
        for gate, bias in ((slice(0, 4), -50.0), (slice(4, 8), 50.0)):
            net.rnn.bias_ih_l0[gate] = bias
    (table,) = (each for each in ActivationWindow()(moment(net, torch.randn(6, 5, 3))) if isinstance(each, Table))
    rows = dict(zip(table.rows, table.values, strict=True))
    assert table.columns == ("closed", "open")
    assert rows["net/rnn:output[l0.reset]#0@train"] == (1.0, 0.0)
    assert rows["net/rnn:output[l0.update]#0@train"] == (0.0, 1.0)
    assert rows["net/rnn:output[l1.reset]#0@train"] == (0.0, 0.0)


def test_a_unit_is_dead_when_it_was_silent_in_the_whole_window():
    model, window = nn.ReLU(), ActivationWindow()
    silent, awake = torch.tensor([[1.0, -1.0]] * 4), torch.ones(4, 2)
    values = [window(moment(model, x))[0] for x in [silent, awake, *[silent] * 8]]
    assert [each.value for each in values] == [0.5, *[0.0] * 8, 0.5]
    assert [each.n for each in values] == [4, 8, 12, 16, 20, 24, 28, 32, 32, 32]


def test_nothing_is_touched():
    model = nn.Sequential(Net(), nn.BatchNorm1d(5), nn.ReLU(inplace=True))
    x = torch.randn(6, 5, 3)
    call = record_call((x,), {})
    model(x).sum().backward()
    before = copy.deepcopy(model.state_dict()), [each.grad.clone() for each in model.parameters()], x.clone()
    state = torch.get_rng_state()
    assert ActivationWindow()(Moment(model, 1, call=call))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(a, b.grad) for a, b in zip(before[1], model.parameters(), strict=True))
    assert torch.equal(before[2], x)


def test_a_rule_reads_what_was_measured():
    """A functional tanh that no layer feeds directly: the rule sees its readings like any others."""
    from holdfast.core.record import StepRecord
    from holdfast.diagnosis.saturated_units import SaturatedUnits
    from holdfast.store.memory import MemoryRun

    class Sum(nn.Module):
        def forward(self, x):
            return torch.tanh(x + 8 * torch.sign(x))

    run, window = MemoryRun(), ActivationWindow()
    for step in range(1, 7):
        readings = window(moment(Sum(), torch.randn(32, 4), step))
        run.write(StepRecord(step, readings=tuple(readings)))
    (finding,) = SaturatedUnits().check(run)
    assert finding.severity == "critical"
    assert str(finding.sites[0]) == "net/:input[tanh]#0@train"


def test_without_activations_there_is_nothing():
    assert ActivationWindow()(moment(nn.Linear(3, 3), torch.randn(4, 3))) == []
    assert ActivationWindow()(moment(nn.Tanh(), torch.full((4, 3), torch.nan))) == []


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_in_evaluation_mode_and_under_autocast(kind):
    net, window = kind(3, 4, 2, dropout=0.5).eval(), ActivationWindow()
    assert window(moment(net, torch.randn(6, 5, 3)))
    with torch.autocast("cpu", torch.bfloat16):
        call = record_call((torch.randn(6, 5, 3),), {})
    assert window(Moment(net, 1, call=call))
    assert window.not_seen == []
