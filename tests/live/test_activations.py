import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.site import Site
from holdfast.live.activations import Activations
from holdfast.live.replay import record_call


class Function(nn.Module):
    """A model whose forward is given, with its leaves."""

    def __init__(self, function, **leaves):
        super().__init__()
        self.function = function
        for name, leaf in leaves.items():
            setattr(self, name, leaf)

    def forward(self, *args):
        return self.function(self, *args)


def activations(function, *args, **leaves):
    model = Function(function, **leaves)
    found = Activations(model)
    found.follow(model, record_call(args, {}))
    return found.found


def linear(**names):
    return {name: nn.Linear(3, 3) for name in names or "ab"}


def named(found):
    return [(str(each.site).removeprefix("net/").removesuffix("@train"), each.role) for each in found]


X = torch.linspace(-9, 9, 12).view(4, 3)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.act(x),
        lambda m, x: torch.tanh(x),
        lambda m, x: x.tanh(),
        lambda m, x: x.clone().tanh_(),
        lambda m, x: F.tanh(x),
    ],
)
def test_modules_and_functions_are_read_alike(function):
    (found,) = activations(function, X, act=nn.Tanh())
    assert found.seen.summary.counts.beyond == int((X.abs() > 2.178).sum())
    assert (found.samples, found.role, found.site.port) == (4, "saturating", "input")


@pytest.mark.parametrize(
    "function",
    [lambda m, x: m.act(x), lambda m, x: F.relu(x), lambda m, x: x.relu(), lambda m, x: F.relu(x, inplace=True)],
)
def test_rectifiers_are_read_behind(function):
    (found,) = activations(function, X, act=nn.ReLU(inplace=True))
    assert found.seen.channels.zeros.tolist() == (X <= 0).sum(0).tolist()
    assert (found.role, found.site.port) == ("rectifying", "output")


def test_a_functions_site_is_its_producer_else_its_caller():
    def forward(m, x):
        x = torch.sigmoid(m.a(x).view(2, 2, 3))
        x = torch.tanh(x + 1) - torch.tanh(x - 1)
        return F.relu(m.a(x))

    assert named(activations(forward, X, **linear())) == [
        ("a:output#0", "saturating"),
        (":input[tanh]#0", "saturating"),
        (":input[tanh]#1", "saturating"),
        ("a:output#1", "rectifying"),
    ]


@pytest.mark.parametrize(
    ("function", "gate"),
    [
        (lambda m, x: m.b(x) * torch.sigmoid(m.a(x)), True),
        (lambda m, x: m.b(x) * m.s(m.a(x)), True),
        (lambda m, x: torch.sigmoid(m.a(x)).view(2, 6).view(4, 3).mul(x), True),
        (lambda m, x: torch.lerp(x, m.b(x), torch.sigmoid(m.a(x))), True),
        (lambda m, x: torch.sigmoid(m.a(x)) * 2.0, False),
        (lambda m, x: torch.sigmoid(m.a(x)) * m.b.bias, False),
        (lambda m, x: torch.sigmoid(m.a(x)) + m.b(x), False),
        (lambda m, x: m.b(m.s(m.a(x))), False),
        (lambda m, x: torch.tanh(m.a(x)) * m.b(x), False),
    ],
)
def test_a_gate_is_a_sigmoid_that_a_signal_is_multiplied_with(function, gate):
    (found,) = activations(function, X, s=nn.Sigmoid(), **linear())
    assert (found.role == "gate") is gate


def test_a_recurrent_cell_written_by_hand():
    def cell(m, x):
        i, f, g, o = (m.a(x).repeat(1, 4)).chunk(4, 1)
        c = torch.sigmoid(f) * x + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c)

    assert [each.role for each in activations(cell, X, **linear())] == [
        "gate",
        "gate",
        "saturating",
        "gate",
        "saturating",
    ]


class DynamicTanh(nn.Module):
    """As the paper's authors write it."""

    def __init__(self):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.tanh(self.alpha * x) * self.weight


def test_dynamic_tanh_is_saturated_beyond_its_own_slope():
    (found,) = activations(lambda m, x: m.act(x), X, act=DynamicTanh())
    assert found.site == Site("act", "input")
    assert found.seen.summary.counts.beyond == int((0.5 * X.abs() > 2.178).sum())


def test_channels_of_a_convolution_behind_a_function():
    x = torch.randn(5, 2, 7)
    conv = nn.Conv1d(2, 3, 1)
    found = activations(lambda m, x: F.relu(m.conv(x) + 1), x, conv=conv)
    assert found[0].seen.channels.zeros.tolist() == ((conv(x) + 1) <= 0).sum((0, 2)).tolist()
    assert found[0].samples == 5


def test_integers_and_empty_batches_are_passed_over():
    assert activations(lambda m, x: F.relu(x), torch.arange(-3, 3)) == []
    assert activations(lambda m, x: F.relu(x), torch.zeros(0, 3)) == []


@pytest.mark.parametrize("packed", [False, True])
def test_inside_a_lstm(packed):
    x = torch.randn(6, 5, 3)
    given = nn.utils.rnn.pack_sequence([x[:, k] for k in range(5)]) if packed else x
    rnn = nn.LSTM(3, 4, 2, bidirectional=True, dropout=0.3)
    found = activations(lambda m, x: m.rnn(x)[0], given, rnn=rnn)
    assert len(found) == 2 * 2 * 5
    assert named(found)[:2] == [("rnn:output[l0.input]#0", "gate"), ("rnn:output[l0.forget]#0", "gate")]
    assert {str(each.site.leaf) for each in found if each.role == "saturating"} == {
        f"l{layer}{end}.{part}" for layer in (0, 1) for end in ("", "_reverse") for part in ("candidate", "cell")
    }
    assert {(each.samples, each.seen.summary.counts.total) for each in found} == {(5, 6 * 5 * 4)}


def test_the_ends_of_a_gate_are_told_apart():
    rnn = nn.GRU(3, 4, batch_first=True)
    for parameter in rnn.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        rnn.bias_ih_l0[:3], rnn.bias_ih_l0[4:6] = -5.0, 5.0
    reset, update, candidate = activations(lambda m, x: m.rnn(x)[0], torch.randn(2, 5, 3), rnn=rnn)
    assert (reset.low, reset.seen.summary.counts.beyond) == (30, 30)
    assert (update.low, update.seen.summary.counts.beyond) == (0, 20)
    assert (candidate.role, candidate.seen.summary.counts.beyond) == ("saturating", 0)


def test_steps_of_a_cell_are_read_together():
    def forward(m, x):
        h = None
        for step in x:
            h = m.cell(step, h)
        return h

    found = activations(forward, torch.randn(7, 5, 3), cell=nn.RNNCell(3, 4, nonlinearity="relu"))
    assert named(found) == [("cell:output[rectified]#0", "rectifying")]
    assert (found[0].samples, found[0].seen.summary.counts.total) == (5, 7 * 5 * 4)
    assert found[0].seen.channels.zeros.sum() > 0


def test_a_recurrent_layer_that_gives_something_else_is_not_read():
    class Scaled(nn.GRU):
        def forward(self, *args):
            output, h = super().forward(*args)
            return 2 * output, h

    model = Function(lambda m, x: m.rnn(x)[0], rnn=Scaled(3, 4))
    found = Activations(model)
    found.follow(model, record_call((torch.randn(6, 5, 3),), {}))
    assert found.found == []
    assert found.not_seen == ["what is inside rnn (Scaled): computed again, its output is another"]


def test_random_states_are_left_alone():
    model = nn.LSTM(3, 4, 2, dropout=0.5)
    call = record_call((torch.randn(6, 5, 3),), {})
    state = torch.get_rng_state()
    Activations(model).follow(model, call)
    assert torch.equal(state, torch.get_rng_state())
