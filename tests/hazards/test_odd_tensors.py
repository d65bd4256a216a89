"""Whatever flows through a layer is read rightly, or skipped and listed; it is never changed, copied whole or fatal."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from holdfast.core.site import Site


class Passing(nn.Module):
    """A leaf that gives on what it is given, or what a function makes of it."""

    def __init__(self, function=lambda *args: args[0]):
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


class Between(nn.Module):
    """A leaf between two linear layers that is given an odd tensor beside the stream of the network."""

    def __init__(self, make):
        super().__init__()
        self.first, self.odd, self.last = nn.Linear(6, 6), Passing(), nn.Linear(6, 3)
        self.make = make

    def forward(self, x):
        hidden = self.first(x)
        self.odd(self.make(hidden))
        return self.last(hidden)


def one_step(record, model, inputs, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = record(model, optimizer, **options)
    for _ in range(2):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()
    history = recording.close()
    assert not history.events("monitor-error")
    assert history.summaries(Site("last", "input"))
    return history


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda x: x.relu().to_sparse(), "sparse_coo"),
        (lambda x: x.detach().to_sparse_csr(), "sparse_csr"),
        (lambda x: torch.quantize_per_tensor(x.detach(), 0.1, 0, torch.qint8), "qint8"),
        (lambda x: torch.complex(x, x), "complex64"),
        (lambda x: x.long(), "int64"),
        (lambda x: x > 0, "bool"),
        (lambda x: torch.nested.as_nested_tensor([x[:2], x[2:]]), "nested"),
        (lambda x: x.detach().to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda x: x.detach().to("meta"), "meta"),
        (lambda x: x.sum(), "single"),
    ],
    ids=["coo", "csr", "quantised", "complex", "integer", "boolean", "nested", "float8", "meta", "scalar"],
)
@pytest.mark.filterwarnings("ignore:.*(quantiz|nested|Sparse CSR|torch.ao|prototype|TypedStorage)")
def test_what_cannot_be_measured_is_listed(record, make, kind):
    history = one_step(record, Between(make), torch.randn(8, 6))
    assert not history.summaries(Site("odd", "input"))
    told = [each for each in history.structure().not_seen if each.startswith("the input of odd")]
    assert len(told) == 1
    assert told[0].endswith(f"{kind} values are not measured")


def stretched(x):
    return x[:1].expand(8, 6)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: x.repeat(1, 2)[:, ::2],
        stretched,
        lambda x: x.detach().flip(0),
        lambda x: torch.zeros(0, 6),
        lambda x: torch.complex(torch.zeros_like(x), x.detach()).conj().imag,
        lambda x: x.bfloat16(),
        lambda x: x.double(),
        lambda x: x.half(),
        lambda x: x[:, 0],
        lambda x: x[0, 0, None, None, None, None, None, None],
        lambda x: nn.Parameter(x.detach()),
    ],
    ids=[
        "transposed",
        "strided",
        "expanded",
        "flipped",
        "empty",
        "negated",
        "bf16",
        "f64",
        "f16",
        "vector",
        "many-axes",
        "parameter",
    ],
)
@pytest.mark.parametrize("mode", ["sampled", "exact"])
def test_odd_tensors_are_read_as_they_are(record, make, mode):
    kept = []

    def keep(x):
        kept.append(make(x))
        return kept[-1]

    history = one_step(record, Between(keep), torch.randn(8, 6), mode=mode)
    (_, summary), _ = history.summaries(Site("odd", "input"))
    values = kept[0].detach().double()
    assert summary.counts.total == values.numel()
    if values.numel():
        assert summary.moments.mean == pytest.approx(values.mean().item(), abs=1e-6)
        assert summary.moments.variance == pytest.approx(values.var(correction=0).item(), abs=1e-6)
        assert (summary.extremes.low, summary.extremes.high) == (values.min().item(), values.max().item())


def test_nan_and_infinities_are_counted_and_the_rest_is_measured(record):
    odd = torch.tensor([[1.0, torch.nan, torch.inf], [3.0, -torch.inf, torch.inf]])
    history = one_step(record, Between(lambda x: odd), torch.randn(8, 6))
    (_, summary), _ = history.summaries(Site("odd", "input"))
    assert (summary.counts.nan, summary.counts.positive_inf, summary.counts.negative_inf) == (1, 2, 1)
    assert summary.moments.mean == 2.0


def test_channels_last_costs_no_copy(record):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    inputs = torch.randn(16, 3, 8, 8)
    run = []
    for memory in (torch.contiguous_format, torch.channels_last):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        recording = record(model.to(memory_format=memory), optimizer, mode="exact")
        F.cross_entropy(model(inputs.to(memory_format=memory)), torch.zeros(16, dtype=torch.long)).backward()
        optimizer.step()
        ((_, summary),) = recording.close().summaries(Site("1", "input"))
        run.append(summary)
    assert run[0].counts == run[1].counts
    assert run[0].moments.mean == pytest.approx(run[1].moments.mean, rel=1e-5)


@dataclass
class Both:
    first: torch.Tensor
    second: object = None


def test_nested_outputs_have_paths_and_none_is_no_value(record):
    class Nest(nn.Module):
        def forward(self, x):
            return Both(x, {"more": (None, [2 * x, x.long()], "text", 3)})

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.nest, self.last = nn.Linear(6, 6), Nest(), nn.Linear(6, 3)

        def forward(self, x):
            nest = self.nest(self.first(x))
            return self.last(nest.first + nest.second["more"][1][0])

    history = one_step(record, Model(), torch.randn(8, 6))
    gradients = {site.leaf for site in history.sites(port="grad_output") if site.module == "nest"}
    assert gradients == {"first", "second.more.1.0"}
    assert "the output of nest: int64 values are not measured" in history.structure().not_seen


@pytest.mark.parametrize(
    "change",
    [
        lambda x: F.relu(x, inplace=True),
        lambda x: x.add_(1.0),
        lambda x: x.view(-1).mul_(2.0).view_as(x),
        lambda x: (x[:, :2].zero_(), x)[1],
    ],
    ids=["relu", "add", "view", "slice"],
)
def test_in_place_operations_change_nothing_of_what_was_seen(record, change):
    class Model(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.first, self.change, self.last = nn.Linear(6, 6), Passing(change), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(self.change(self.first(x)))

    def run(change):
        torch.manual_seed(0)
        return one_step(record, Model(change), torch.randn(8, 6))

    ours, expected = run(change), run(lambda x: change(x.clone()))
    for site in (Site("change", "input"), Site("last", "input"), Site("first", "grad_output")):
        for (_, seen), (_, other) in zip(ours.summaries(site), expected.summaries(site), strict=True):
            assert seen.counts == other.counts
            # The compiled kernel may have become ready between the two.
            np.testing.assert_allclose(seen.moments.pack(), other.moments.pack(), rtol=1e-12, atol=1e-12)


def test_a_recurrent_cell_has_a_site_for_each_call(record):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.last = nn.LSTMCell(6, 4), nn.Linear(4, 3)

        def forward(self, x):
            state = None
            for _ in range(3):
                state = self.cell(x, state)
            return self.last(state[0])

    history = one_step(record, Model(), torch.randn(8, 6))
    for port in ("input", "grad_output"):
        calls = {(site.call, site.leaf) for site in history.sites(port=port) if site.module == "cell"}
        assert {call for call, _ in calls} == {0, 1, 2}
    assert {site.leaf for site in history.sites(port="input") if site.module == "cell" and site.call == 1} == {
        "0",
        "1.0",
        "1.1",
    }


@pytest.mark.filterwarnings("default")  # torch.func.jvp uses what torch deprecates
def test_function_transforms_pass_over_a_watched_model(record, readings):
    inputs = torch.randn(8, 6)

    def run(transforming):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        parameters = {name: each.detach().clone() for name, each in model.named_parameters()}

        def loss(parameters, sample):
            return torch.func.functional_call(model, parameters, (sample,)).sum()

        per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))
        expected = per_sample(parameters, inputs)
        recording = record(model, optimizer)
        model(inputs).sum().backward()
        if transforming:
            found = per_sample(parameters, inputs)
            assert all(torch.equal(found[name], each) for name, each in expected.items())
            torch.func.jvp(model, (inputs,), (inputs,))
            torch.func.vmap(model)(inputs)
        optimizer.step()
        history = recording.close()
        assert not history.events("monitor-error")
        return history

    ours, plain = run(True), run(False)
    assert readings(ours) == readings(plain)
    assert [site for site in ours.sites() if site not in plain.sites()] == []
    assert "what flows inside a transform of torch.func: only plain passes are measured" in ours.structure().not_seen
