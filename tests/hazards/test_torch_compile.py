"""Compiled models are seen as eager ones are, in one graph."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from holdfast.core.site import Site

pytestmark = pytest.mark.filterwarnings("default")  # the compiler warns of its own doings


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.act = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True)

    def forward(self, x, *, scale):
        return {"x": self.act(self.norm(self.inner(x * scale)))}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(8, 8), nn.Tanh()

    def forward(self, x):
        return self.act(self.linear(x)) + x


class Net(nn.Module):
    """A shared layer, an in-place activation, a dict between layers, batch statistics, a checkpointed part."""

    def __init__(self, reentrant=False):
        super().__init__()
        self.stem = Stem()
        self.shared = nn.Linear(8, 8)
        self.block = Block()
        self.head = nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x):
        hidden = torch.tanh(self.shared(torch.tanh(self.shared(self.stem(x, scale=2.0)["x"]))))
        return self.head(checkpoint(self.block, hidden, use_reentrant=self.reentrant))


def batches(count, *sizes):
    generator = torch.Generator().manual_seed(1)
    sizes = [sizes[step % len(sizes)] for step in range(count)]
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(0, 3, (size,), generator=generator)) for size in sizes
    ]


def watched(record, train, model, compiled, data, *, before=True, **options):
    """Train a model through its compiled form, which is made before or after the watch begins."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = compiled(model) if before else None
    recording = record(step if before else model, optimizer, probe=batches(1, 16)[0][0], **options)
    train(step if before else compiled(model), optimizer, data)
    return recording.close()


def whole(model):
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def in_place(model):
    model.compile(backend="aot_eager", fullgraph=True)
    return model


def regional(model):
    for part in (model.stem, model.block):
        part.compile(backend="aot_eager", fullgraph=True)
    return model


def assert_equal(ours, eager):
    assert ours.keys() == eager.keys()
    for key, value in ours.items():
        assert value == pytest.approx(eager[key], rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize(
    ("compiled", "before", "reentrant"),
    [
        (whole, False, False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((whole, True, False), (in_place, False, True), (regional, False, True))
        ),
    ],
)
def test_figures_and_weights_are_eager_s_in_one_graph(record, train, readings, compiled, before, reentrant):
    torch.manual_seed(0)
    eager, ours, bare = (copy.deepcopy(each) for each in [Net(reentrant)] * 3)
    # Another number of samples compiles once more, for any number.
    data = batches(4, 24, 24, *([20, 28] if compiled is whole and before else []))
    expected = watched(record, train, eager, lambda model: model, data, every=2)
    run = watched(record, train, ours, compiled, data, every=2, before=before)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] >= 1
    assert not [each for each in run.structure().not_seen if "torch.compile" in each]

    seen, eager_seen = readings(run), readings(expected)
    if not before and compiled is whole:
        # The arguments of the call, which the step probe needs, are not known in this case alone.
        (event,) = run.events("monitor-error")
        assert "before hf.watch" in event.message
        eager_seen = {key: value for key, value in eager_seen.items() if key in seen or "@train" not in key[1]}
    else:
        assert not run.events("monitor-error")
    assert_equal(seen, eager_seen)
    assert {key[0] for key in seen if "grad_output" in key[1]} >= {"gradient-norm"}
    assert ("gradient-norm", "net/shared:grad_output#1@train", None, 4) in seen
    for site in ("shared:input#1", "block.linear:input#0", "stem.act:input#0"):
        module, _, rest = site.partition(":")
        place = Site(module, rest[:-2], call=int(rest[-1]))
        assert [(step, each.counts) for step, each in run.summaries(place)] == [
            (step, each.counts) for step, each in expected.summaries(place)
        ]

    train(bare, torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9), data)
    for name, value in bare.state_dict().items():
        assert torch.equal(value, eager.state_dict()[name]), name
        assert torch.allclose(value, ours.state_dict()[name], rtol=1e-5, atol=1e-7), name


def small(width=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 3))


def test_off_cadence_nothing_is_read_and_nothing_compiled_anew(record, train):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    recording = record(compiled, optimizer, every=4)
    train(compiled, optimizer, batches(1, 24))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 2  # the training forward, and the step probe's
    with torch.compiler.set_stance("fail_on_recompile"):
        train(compiled, optimizer, batches(4, 24))
    assert [step for step, _ in recording.run.summaries(Site("2", "input"))] == [1, 4]
    history = recording.close()
    assert counters["stats"]["unique_graphs"] == graphs
    assert not history.events("monitor-error")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    train(compiled, optimizer, batches(1, 24))  # once more without hooks


def test_a_watch_after_the_first_compiled_call_says_so(record, train):
    model = nn.Sequential(nn.Linear(6, 8), Block(), nn.Linear(8, 3))
    model[1].compile(backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, batches(1, 24))
    recording = record(model, optimizer)
    train(model, optimizer, batches(2, 24))
    run = recording.close()
    (sentence,) = [each for each in run.structure().not_seen if "torch.compile" in each]
    assert sentence == (
        "what flows inside code that torch.compile made before the watch began: 1; to see it, call hf.watch before "
        "the model's first compiled call, or torch.compiler.reset() after hf.watch"
    )
    assert {site.module for site in run.sites(port="input", phase="train")} == {"0", "2"}

    recording = record(model, optimizer)
    torch.compiler.reset()
    train(model, optimizer, batches(2, 24))
    run = recording.close()
    assert not [each for each in run.structure().not_seen if "torch.compile" in each]
    assert {site.module for site in run.sites(port="input", phase="train")} == {"0", "1.linear", "1.act", "2"}


def test_a_compiled_function_that_calls_the_model(record, train, readings):
    data = batches(2, 24)
    eager, model = small(), small()
    expected = watched(record, train, eager, lambda model: model, data)
    run = watched(
        record,
        train,
        model,
        lambda model: torch.compile(lambda x: model(2 * x / 2), backend="aot_eager", fullgraph=True),
        data,
        before=False,
    )
    ours, eagers = readings(run), readings(expected)
    assert ("gradient-norm", "net/0:grad_output#0@train", None, 2) in ours
    for key in [key for key in ours if "grad_output" in key[1] or "input" in key[1]]:
        assert ours[key] == pytest.approx(eagers[key], rel=1e-6, abs=1e-9)


def test_an_exported_model_holds_nothing_of_ours(record):
    model = small()
    recording = record(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for strict in (True, False):
        program = torch.export.export(model, (torch.randn(4, 6),), strict=strict)
        assert "holdfast" not in str(program.graph)
        assert torch.equal(program.module()(torch.ones(4, 6)), model(torch.ones(4, 6)))
    recording.close()


@pytest.mark.slow
def test_inductor_reads_as_eager_and_unchanged_weights_do_not_drift(record, train, readings):
    torch.manual_seed(0)
    eager, net = (copy.deepcopy(each) for each in [Net()] * 2)
    data = batches(3, 24)
    expected = watched(record, train, eager, lambda model: model, data)
    run = watched(record, train, net, lambda model: torch.compile(model, fullgraph=True), data)
    ours, eagers = readings(run), readings(expected)
    assert ours.keys() == eagers.keys()
    for key in ours:
        if key[0] in ("rms", "gradient-norm", "mean-square"):
            assert ours[key] == pytest.approx(eagers[key], rel=1e-4, abs=1e-6), key

    # With dropout, half precision and no update, only compiled code itself gives the very same figures again.
    dropping = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(dropping.parameters(), lr=0.0)
    compiled = torch.compile(dropping, fullgraph=True)
    recording = record(compiled, optimizer)
    for inputs, labels in batches(2, 24):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(compiled(inputs), labels)
        loss.backward()
        optimizer.step()
    drifts = recording.close().readings("parameter-drift")
    assert len(drifts) >= 8
    assert all(each.value == 0 for each in drifts)
    assert not counters["graph_break"]
