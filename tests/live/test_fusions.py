import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from holdfast.core.errors import InputError
from holdfast.live.fusions import fusions
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


def found(function, *args, loss=None, **leaves):
    model = Function(function, **leaves)
    return model, fusions(model, record_call(args, {}), loss_of=loss)


def linear(**widths):
    return {name: nn.Linear(*width) for name, width in widths.items()}


def square(output):
    return output.square().sum()


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
THREE = linear(a=(4, 3), b=(4, 3), c=(4, 3))


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize(
    ("head", "forward", "shape", "width"),
    [
        ("linear", lambda m, x: m.head(torch.cat([m.a(x), m.b(x), x], 1)), (6, 4), 10),
        ("linear", lambda m, x: m.head(torch.concat((m.a(x), x, m.b(x)), dim=-1)), (6, 5, 4), 10),
        ("conv", lambda m, x: m.head(torch.cat([x, m.a(x), m.b(x)], 1)), (6, 4, 8), 10),
        ("linear", lambda m, x: m.head((m.a(x) + m.b(x)) + m.c(x)), (6, 4), 3),
        ("conv", lambda m, x: m.head(torch.add(m.a(x), m.b(x), alpha=0.3)), (6, 4, 8), 3),
    ],
)
def test_contributions_and_gradients_add_up(head, forward, shape, width, padding_mode):
    """Their sums are the layer's output and the weight's gradient, to 1e-5."""
    if head == "linear":
        leaves = {**linear(a=(4, 3), b=(4, 3), c=(4, 3)), "head": nn.Linear(width, 2)}
    else:
        leaves = {name: nn.Conv1d(4, 3, 1) for name in "ab"}
        leaves["head"] = nn.Conv1d(width, 2, 3, padding=1, stride=2, padding_mode=padding_mode)
    x = torch.randn(*shape)
    model, (fusion,) = found(forward, x, loss=square, **leaves)
    output = model(x)
    bias = model.head.bias if head == "linear" else model.head.bias[:, None]
    torch.testing.assert_close(sum(fusion.contributions), (output - bias).detach(), rtol=0, atol=1e-5)
    square(output).backward()
    torch.testing.assert_close(sum(fusion.gradients), model.head.weight.grad, rtol=1e-5, atol=1e-4)
    assert (fusion.layer, fusion.call) == ("head", 0)
    assert set(fusion.names) <= {"a", "b", "c", "input"}
    assert len(fusion.names) == len(fusion.streams) >= 2


def test_blocks_of_a_concatenation():
    model, (fusion,) = found(
        lambda m, x: m.head(torch.cat([m.a(x), m.b(x)], 1)), X, loss=square, **THREE, head=nn.Linear(6, 2)
    )
    a, b = model.a(X), model.b(X)
    torch.testing.assert_close(fusion.contributions[0], F.linear(a, model.head.weight[:, :3]).detach())
    torch.testing.assert_close(fusion.contributions[1], F.linear(b, model.head.weight[:, 3:]).detach())
    assert not fusion.gradients[0][:, 3:].any()
    assert not fusion.gradients[1][:, :3].any()


def test_without_a_linear_layer_the_parts_are_of_what_meets():
    _, (add, cat) = found(lambda m, x: torch.cat([F.relu(m.a(x) + m.b(x)), m.c(x)], 1).tanh(), X, loss=square, **THREE)
    assert (add.kind, add.layer, add.names, add.gradients) == ("add", "", ("a", "b"), ())
    assert (cat.kind, cat.names) == ("cat", ("a+b", "c"))
    assert all(
        part is not None and torch.equal(part, whole)
        for part, whole in zip(add.contributions, add.streams, strict=True)
    )
    assert cat.contributions[0].shape == (6, 6)
    assert not cat.contributions[0][:, 3:].any()


def test_a_chain_of_additions_is_one_fusion_and_a_shared_sum_is_not():
    _, (one,) = found(lambda m, x: m.a(x) + m.b(x) + m.c(x), X, **THREE)
    assert one.names == ("a", "b", "c")

    def shared(m, x):
        s = m.a(x) + m.b(x)
        return (s + m.c(x)) * s.mean()

    _, several = found(shared, X, **THREE)
    assert [each.names for each in several] == [("a", "b"), ("a+b", "c")]


def test_streams_of_one_layer_and_a_layer_that_takes_two_fusions():
    def forward(m, x):
        return m.head(torch.cat([m.a(x), m.a(-x)], 1)) + m.head(torch.cat([m.b(x), x[:, :3]], 1)).detach()

    _, (one, two, last) = found(forward, X, loss=square, **THREE, head=nn.Linear(6, 2))
    assert [(each.layer, each.call, each.names) for each in (one, two)] == [
        ("head", 0, ("a#0", "a#1")),
        ("head", 1, ("b", "input")),
    ]
    assert len(one.gradients) == 2
    assert two.gradients == ()  # nothing comes back through a detach
    assert last.names == ("head#0", "head#1")


def test_several_layers_that_take_one_sum():
    def forward(m, x):
        s = m.a(x) + m.b(x)
        return m.q(s) * m.k(s)

    _, several = found(forward, X, **THREE, q=nn.Linear(3, 3), k=nn.Linear(3, 3))
    assert [each.layer for each in several] == ["q", "k"]


def test_samples_that_are_joined_are_no_fusion_and_parameters_no_stream():
    assert found(lambda m, x: torch.cat([m.a(x), m.b(x)]), X, **THREE)[1] == []
    assert found(lambda m, x: m.a(x) + m.b.bias, X, **THREE)[1] == []
    assert found(lambda m, x: m.a(x) + 1, X, **THREE)[1] == []


def test_streams_are_as_they_were_before_they_are_overwritten():
    def forward(m, x):
        a = m.a(x)
        a += m.b(x)
        return m.c(F.pad(a, (0, 1)))

    model, (fusion,) = found(forward, X, **THREE)
    torch.testing.assert_close(fusion.streams[0], model.a(X).detach())


def test_time_first_streams_have_samples_first():
    rnn = nn.LSTM(4, 3)
    _, (fusion,) = found(
        lambda m, x: m.head(torch.cat([m.rnn(x)[0], x], 2)), torch.randn(7, 5, 4), rnn=rnn, head=nn.Linear(7, 2)
    )
    assert [tuple(each.shape) for each in fusion.streams] == [(5, 7, 3), (5, 7, 4)]
    assert fusion.contributions[0].shape == (5, 7, 2)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_nothing_is_touched_and_dropout_is_the_same_in_both_passes(checkpointed):
    def forward(m, x):
        a = checkpoint(lambda x: m.norm(m.a(x)), x, use_reentrant=False) if checkpointed else m.norm(m.a(x))
        return m.head(torch.cat([m.drop(a), m.b(x)], 1))

    leaves = {**linear(a=(4, 3), b=(4, 3)), "norm": nn.BatchNorm1d(3), "drop": nn.Dropout(), "head": nn.Linear(6, 2)}
    model = Function(forward, **leaves)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    versions = [each._version for each in model.parameters()]
    call = record_call((X,), {})
    state = torch.get_rng_state()
    (fusion,) = fusions(model, call, loss_of=square)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert versions == [each._version for each in model.parameters()]
    assert all(each.grad is None for each in model.parameters())
    square(model(X)).backward()  # the same masks, since the generator stands where it stood
    torch.testing.assert_close(sum(fusion.gradients), model.head.weight.grad, rtol=1e-5, atol=1e-4)


def test_a_frozen_layer_has_no_gradients():
    _, (fusion,) = found(
        lambda m, x: m.head(torch.cat([x, x * 2], 1)),
        X,
        loss=lambda y: (y * torch.ones((), requires_grad=True)).sum(),
        head=nn.Linear(8, 2).requires_grad_(False),
    )
    assert fusion.gradients == ()


def test_of_large_streams_evenly_spaced_elements_are_kept():
    x = torch.randn(4, 2, 400, 400)
    _, (fusion,) = found(
        lambda m, x: m.head(m.a(x) + m.b(x)), x, **{name: nn.Conv2d(2, 2, 1) for name in ("a", "b", "head")}
    )
    assert {tuple(each.shape) for each in (*fusion.streams, *fusion.contributions)} == {(4, 64_000)}


def test_a_reentrant_checkpoint_is_refused_with_a_way_out():
    def forward(m, x):
        return checkpoint(m.c, m.head(torch.cat([m.b(x), x], 1)), use_reentrant=True)

    with pytest.raises(InputError, match=r"got .*use_reentrant=True.*use_reentrant=False"):
        found(forward, X, loss=square, **THREE, head=nn.Linear(7, 4))


@torch.inference_mode()
def test_in_inference_mode():
    _, (fusion,) = found(lambda m, x: m.a(x) + m.b(x), X, **THREE)
    assert fusion.names == ("a", "b")
