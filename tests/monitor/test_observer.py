import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.diagnosis.collapsed_signal import CollapsedSignal
from holdfast.diagnosis.dead_units import DeadUnits
from holdfast.diagnosis.saturated_units import SaturatedUnits
from holdfast.live.leaves import observed_leaves
from holdfast.live.replay import record_call
from holdfast.live.structure import extract
from holdfast.monitor.observer import Observer
from holdfast.monitor.roles import Roles, roles
from holdfast.monitor.site_readings import Past, site_readings
from holdfast.norms.dynamic_tanh import DynamicTanh
from holdfast.report.layers import layer_rows
from holdfast.store.memory import MemoryRun


class Observed:
    """A model's passes as the observer saw them, and the run that they make."""

    def __init__(self, model: nn.Module, batches: list[torch.Tensor]) -> None:
        structure = extract(model, call=record_call((batches[0],), {}))
        self.leaves = observed_leaves(model)
        self.roles = roles(self.leaves, structure)
        self.observer = Observer(self.leaves, stream="net", max_elements=None, roles=self.roles, failed=_raise)
        self.run = MemoryRun()
        self.run.describe(structure)
        past = Past()
        self.observer.attach()
        for step, batch in enumerate(batches, 1):
            self.observer.begin(0.0)
            model(batch).sum().backward()
            readings = site_readings(
                self.observer.observations,
                self.observer.gradients,
                [],
                past=past,
                structure=structure,
                roles=self.roles,
                step=step,
            )
            self.run.write(StepRecord(step, readings=tuple(readings)))
        self.observer.detach()

    def samples(self, module: str, port: str, leaf: str = "") -> int:
        return self.observer.observations[Site(module, port, leaf=leaf)].features.samples

    def features(self, module: str, port: str) -> int:
        return self.observer.observations[Site(module, port)].features.channels


def _raise(path: str, exception: Exception) -> None:
    raise exception


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Chain(nn.Module):
    """Linear layers with one function behind each."""

    def __init__(self, function, depth: int = 5, width: int = 16):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x):
        for layer in self.layers:
            x = self.function(layer(x))
        return x


def inplace_relu(x):
    return F.relu(x, inplace=True)


@pytest.mark.parametrize("function", [F.relu, torch.relu, inplace_relu, F.relu6])
def test_a_net_of_functional_relus_that_is_dead_from_the_third_layer_on(function):
    model = Chain(function)
    with torch.no_grad():
        model.layers[2].bias.fill_(-100.0)
        for layer in model.layers[3:]:
            layer.bias.fill_(-1.0)  # nothing but their bias is left
    run = Observed(model, [normal(64, 16, seed=step) for step in range(6)]).run
    (finding,) = DeadUnits().check(run)
    assert finding.severity == "critical"
    assert {site.module for site in finding.sites} == {"layers.2", "layers.3", "layers.4"}
    alive = run.readings("dead-units", Site("layers.0", "output"))
    assert len(alive) == 6
    assert alive[-1].value < 0.2
    assert alive[-1].n == 6 * 64
    rows = {row.site.module: row for row in layer_rows(run)}
    assert rows["layers.2"].dead.value == 1.0
    assert len(rows) == 5


def test_a_unit_of_a_functional_rectifier_is_dead_when_its_input_never_exceeds_where_it_is_zero():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.BatchNorm1d(4, affine=True)

        def forward(self, x):
            return F.hardswish(self.layer(x))

    model = Shifted()
    with torch.no_grad():
        model.layer.bias.copy_(torch.tensor([0.0, -3.0, -9.0, -90.0]))  # zero up to -3
    run = Observed(model, [normal(64, 4)]).run
    assert [each.value for each in run.readings("dead-units")] == [0.5]


def test_what_a_functional_rectifier_takes_keeps_its_own_statistics():
    model = Chain(F.relu, depth=2)
    batch = normal(64, 16)
    seen = Observed(model, [batch]).observer.observations[Site("layers.0", "output")]
    expected = model.layers[0](batch)
    assert seen.summary.moments.mean == pytest.approx(expected.mean().item(), rel=1e-5)
    assert seen.channels.zeros.sum() == 0
    assert seen.rectified.zeros.tolist() == (expected <= 0).sum(0).tolist()


def test_the_threshold_of_a_dynamic_tanh_moves_with_its_slope():
    model = nn.Sequential(DynamicTanh(16, alpha=0.5))
    leaves, batch = observed_leaves(model), 9 * normal(8, 16)
    observer = Observer(leaves, stream="net", max_elements=None, roles=roles(leaves, extract(model)), failed=_raise)
    observer.attach()
    for alpha in (0.5, 0.1, -2.0, 0.0):
        with torch.no_grad():
            model[0].alpha.fill_(alpha)
        observer.begin(0.0)
        model(batch)
        counts = observer.observations[Site("0", "input")].summary.counts
        assert counts.beyond == int((alpha * batch).abs().gt(2.17779).sum())
    observer.close()


@pytest.mark.parametrize("parts", [1, 3])
def test_micro_batches_of_a_rectified_layer_add_up(parts):
    model = Chain(F.relu, depth=1)
    leaves = observed_leaves(model)
    found = roles(leaves, extract(model, call=record_call((normal(4, 16),), {})))
    observer = Observer(leaves, stream="net", max_elements=None, roles=found, failed=_raise)
    observer.attach()
    for part in range(parts):
        observer.begin_pass("train")
        model(normal(8, 16, seed=part))
    assert set(observer.observations[Site("layers.0", "output")].rectified.count) == {8.0 * parts}
    observer.close()


def test_a_functional_sigmoid_with_six_values_in_ten_on_its_flat_ends():
    model = Chain(torch.sigmoid, depth=2)
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.eye(16) * 8.4)  # P(|N(0, 8.4)| > 4.357) = 0.60
        model.layers[0].bias.zero_()
    run = Observed(model, [normal(64, 16, seed=step) for step in range(6)]).run
    (finding,) = SaturatedUnits().check(run)
    assert [(site.module, site.port) for site in finding.sites] == [("layers.0", "output")]
    assert "% of the values at the output of 'layers.0'" in finding.message
    assert "1 of 2 activations" in finding.message
    assert 0.55 < finding.evidence[0].value < 0.65
    rows = {row.site.module: row.saturated for row in layer_rows(run)}
    assert rows["layers.0"].value == run.readings("saturated-fraction", Site("layers.0", "output"))[-1].value


def test_a_module_of_known_type_that_calls_the_function_is_one_place():
    class OwnTanh(nn.Tanh):
        def forward(self, x):
            return torch.tanh(x)

    class OwnRelu(nn.ReLU):
        def forward(self, x):
            return torch.relu(x)

    model = nn.Sequential(nn.Linear(4, 4), OwnTanh(), nn.Linear(4, 4), OwnRelu())
    run = Observed(model, [normal(32, 4)]).run
    assert [str(each.site) for each in run.readings("saturated-fraction")] == ["net/1:input#0@train"]
    assert [str(each.site) for each in run.readings("dead-units")] == ["net/3:output#0@train"]


@pytest.mark.parametrize(
    ("function", "rule"), [(torch.relu, DeadUnits()), (torch.sigmoid, SaturatedUnits()), (torch.tanh, SaturatedUnits())]
)
def test_functions_that_could_not_be_read_leave_the_rule_undecided(function, rule):
    run = Observed(Chain(lambda x: function(2 * x)), [normal(64, 16)] * 6).run
    answer = rule.check(run)
    assert f"the function `{function.__name__}` in '(model)' was not read" in answer.reason


def test_one_sample_is_no_collapse():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    run = Observed(model, [normal(1, 6, seed=step) for step in range(6)]).run
    assert run.readings("collapsed-features") == []
    assert "8 samples" in CollapsedSignal().check(run).reason


def test_positions_of_one_sample_count():
    run = Observed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), [normal(1, 3, 8, 8)]).run
    assert [each.value for each in run.readings("collapsed-features", Site("0", "input"))] == [0.0]


class Encoder(nn.Module):
    def __init__(self, batch_first: bool):
        super().__init__()
        self.embedding = nn.Linear(8, 8)
        self.act = nn.GELU()
        self.body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)

    def forward(self, x):
        return self.body(self.act(self.embedding(x)))


@pytest.mark.parametrize("batch_first", [True, False])
def test_time_first_sequences_have_their_samples_second_in_every_layer(batch_first):
    times, samples = 12, 5
    batch = normal(samples, times, 8) if batch_first else normal(times, samples, 8)
    seen = Observed(Encoder(batch_first), [batch])
    for module in ("embedding", "act", "body.linear1", "body.norm1", "body.norm2"):
        for port in ("input", "output"):
            assert seen.samples(module, port) == samples, (module, port)
            assert seen.features(module, port) in (8, 16)
    assert {gradient.samples for site, gradient in seen.observer.gradients.items() if site.leaf == ""} == {samples}


def test_sequences_are_time_first_when_only_some_layers_are_observed():
    model = Encoder(batch_first=False)
    structure = extract(model)
    assert roles([("embedding", model.embedding)], structure).time_first


def test_a_model_with_layers_of_both_kinds_keeps_samples_first():
    model = nn.ModuleList([nn.LSTM(4, 4, batch_first=True), nn.MultiheadAttention(4, 2)])
    assert not roles(observed_leaves(model), extract(model)).time_first


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.act, self.last = nn.Conv1d(2, 4, 3), nn.GELU(), nn.Tanh()

    def forward(self, x):
        return self.last(F.max_pool1d(self.act(F.max_pool1d(self.conv(x), 2)), 2))


def test_after_a_functional_pooling_channels_stay_channels():
    seen = Observed(Pooled(), [normal(6, 2, 42)])  # 20 positions after the first pooling, 10 after the second
    for module in ("conv", "act", "last"):
        assert seen.features(module, "output") == 4, module
        assert seen.samples(module, "input") == 6
    assert seen.features("act", "input") == seen.features("last", "input") == 4


def test_an_activation_s_output_lies_as_its_input():
    seen = Observed(nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU()), [normal(6, 2, 22)])
    assert seen.features("1", "output") == 4
    assert [each.n for each in seen.run.readings("dead-units")] == [6]


def test_tokens_of_an_image_are_not_taken_for_its_channels():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv1d(2, 4, 3), nn.GELU()

        def forward(self, x):
            return self.act(self.conv(x).transpose(1, 2))

    assert Observed(Tokens(), [normal(6, 2, 22)]).features("act", "input") == 4


def test_roles_given_later_are_in_force_from_the_next_step_on():
    model = Chain(torch.sigmoid, depth=1)
    leaves = observed_leaves(model)
    observer = Observer(leaves, stream="net", max_elements=None, roles=Roles(), failed=_raise)
    observer.roles = roles(leaves, extract(model, call=record_call((normal(4, 16),), {})))
    assert not observer.in_force.saturating
    observer.begin(0.0)
    assert observer.in_force is observer.roles


def test_what_cannot_be_read_is_remembered_over_the_run():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    observer = Observer(observed_leaves(model), stream="net", max_elements=None, roles=Roles(), failed=_raise)
    observer.attach()
    model(torch.tensor([1, 2, 3]))
    for _ in range(2):
        observer.begin(0.5)
        assert observer.skipped == {"the input of 0": "int64 values are not measured"}
    observer.close()
    assert list(observer.skipped) == ["the input of 0"]


def test_the_gradient_at_an_output_lies_as_the_output():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.time_first, self.act = nn.LSTM(4, 4), nn.GELU()
            self.samples_first = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x):
            return self.samples_first(self.act(self.time_first(x)[0]).transpose(0, 1))[0]

    seen = Observed(Recurrent(), [normal(12, 5, 4)])
    assert not seen.roles.time_first
    assert seen.samples("act", "output") == 5
    assert seen.observer.gradients[Site("act", "grad_output")].samples == 5


@pytest.mark.parametrize("checkpointed", [False, True])
def test_of_a_long_recurrence_the_first_calls_are_read_and_then_ever_fewer(checkpointed):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.RNNCell(3, 4)

        def forward(self, x):
            h = torch.zeros(len(x), 4, requires_grad=True)
            for now in x.unbind(1):
                h = checkpoint(self.cell, now, h, use_reentrant=False) if checkpointed else self.cell(now, h)
            return h

    seen = Observed(Unrolled(), [normal(6, 100, 3)]).observer
    read = [*range(16), 16, 32, 64]
    for port, found in (("input", seen.observations), ("output", seen.observations), ("grad_output", seen.gradients)):
        assert sorted({site.call for site in found if site.port == port}) == read, port
    assert seen.skipped == {
        "calls of cell in one pass after the first 16": "only those numbered by a power of two are read"
    }


def test_a_layer_whose_passes_do_not_add_up_is_left_out_and_the_others_are_read():
    class Widths(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Tanh()
            self.linear = nn.Linear(1, 2)

        def forward(self, x):
            return self.linear(self.act(x).mean(1, keepdim=True))

    model, failed = Widths(), []
    observer = Observer(
        observed_leaves(model),
        stream="net",
        max_elements=None,
        roles=Roles(),
        failed=lambda path, error: failed.append(path),
    )
    observer.attach()
    for width in (6, 8):
        observer.begin_pass("train", trained_on=True)
        model(normal(4, width)).sum().backward()
    assert observer.observations[Site("linear", "input")].summary.moments.count == 8
    assert observer.gradients[Site("linear", "grad_output")].elements == 16
    assert set(failed) == {"act"}
