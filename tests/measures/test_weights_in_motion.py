"""Rotation, effective rate, update along −gradient, gradient along the weight, gradient over weight."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

import holdfast as hf
from holdfast.core.errors import InputError, StatisticError
from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.live.moment import Moment
from holdfast.live.replay import record_call
from holdfast.live.structure import extract
from holdfast.measures import OFFLINE, WATCHABLE
from holdfast.measures.direction import chance_cosine, cosine
from holdfast.measures.effective_rate import effective_rate
from holdfast.measures.gradient_ratio import gradient_ratio
from holdfast.measures.radial_gradient import radial_gradient
from holdfast.measures.rotation import rotation
from holdfast.measures.scale_invariance import scale_invariant
from holdfast.measures.update_alignment import update_alignment
from holdfast.measures.update_ratio import update_ratio
from holdfast.store.memory import MemoryRun

WEIGHT = Site("0", "weight", leaf="weight")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def moment(model):
    """A step of SGD just done, gradients still there."""
    x = torch.randn(16, 6)
    optimizer = torch.optim.SGD(
        [{"params": model[:3].parameters(), "lr": 0.5}, {"params": model[3].parameters(), "lr": 0.05}]
    )
    structure = extract(model, optimizer, call=record_call((x,), {}))
    model(x).square().mean().backward()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    optimizer.step()
    return Moment(model, 7, "gen", before=before, optimizer=optimizer, structure=structure)


def test_angles(site):
    u = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for angle in (0.0, 1e-9, 1e-4, 1.0, 3.0, math.pi):
        v = torch.tensor([5 * math.cos(angle), 5 * math.sin(angle)], dtype=torch.float64)
        assert rotation(u, v, site=site, step=1).value == pytest.approx(angle, rel=1e-6, abs=1e-15)
    reading = rotation(u, 3 * u, site=site, step=4, lag=10)
    assert (reading.value, reading.n, reading.lag, reading.step, reading.unit) == (0.0, 2, 10, 4, "radians")
    assert rotation(u, 0 * u, site=site, step=1) is None
    assert rotation(u, u / 0, site=site, step=1) is None


def test_shapes_must_agree(site):
    for measure in (rotation, update_alignment, radial_gradient, update_ratio, gradient_ratio):
        with pytest.raises(InputError, match=re.escape("shapes (2,) and (3,); give both of the same parameter")):
            measure(torch.ones(2), torch.ones(3), site=site, step=1)
        with pytest.raises(InputError, match=re.escape("shapes (0,) and (0,)")):
            measure(torch.ones(0), torch.ones(0), site=site, step=1)


def test_cosines(site):
    g = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    down = update_alignment(-3 * g, g, site=site, step=2)
    assert (down.value, down.n, down.unit, down.lag) == (pytest.approx(1.0), 4, "cosine", 1)
    assert down.above_noise
    assert update_alignment(g, g, site=site, step=2).value == pytest.approx(-1.0)
    assert radial_gradient(g, g, site=site, step=2).value == pytest.approx(1.0)
    across = radial_gradient(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), site=site, step=2)
    assert (across.value, across.above_noise) == (0.0, False)
    assert update_alignment(0 * g, g, site=site, step=2) is None
    assert radial_gradient(g, g / 0, site=site, step=2) is None
    assert cosine(torch.full((4,), 1e-30), torch.full((4,), 1e30), "two") == pytest.approx(1.0)


@pytest.mark.parametrize("n", [2, 3, 20, 1000])
def test_chance_is_below_its_percentile_as_often_as_said(n):
    vectors = torch.randn(4000, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    cosines = vectors[:, 0] / vectors.norm(dim=1)
    assert float((cosines > chance_cosine(n)).double().mean()) == pytest.approx(0.025, abs=0.0075)
    assert chance_cosine(1) == 1.0


def test_effective_rate(site):
    weight = torch.full((4,), 2.0)
    reading = effective_rate(weight, 0.8, site=site, step=1)
    assert (reading.value, reading.n, reading.unit) == (pytest.approx(0.05), 4, "per squared L2 norm")
    assert effective_rate(4.0, 0.8, site=site, step=1, n=4).value == pytest.approx(0.05)
    assert effective_rate(0 * weight, 0.8, site=site, step=1) is None
    for rate in (-0.1, math.inf, math.nan):
        with pytest.raises(InputError, match="a learning rate of zero or more"):
            effective_rate(weight, rate, site=site, step=1)
    with pytest.raises(StatisticError):
        effective_rate(4.0, 0.8, site=site, step=1)


def test_gradient_ratio(site):
    reading = gradient_ratio(torch.tensor([0.3, 0.4]), torch.tensor([3.0, 4.0]), site=site, step=1)
    assert (reading.value, reading.n) == (pytest.approx(0.1), 2)
    assert gradient_ratio(0.5, 5.0, site=site, step=1, n=2).value == pytest.approx(0.1)
    assert gradient_ratio(1.0, 0.0, site=site, step=1, n=2).value == math.inf
    assert gradient_ratio(0.0, 0.0, site=site, step=1, n=2).value == 0.0


def test_in_a_watch_the_scale_invariant_weights_alone_rotate(moment):
    (turned,) = WATCHABLE["rotation"].start()(moment)
    assert (turned.site, turned.step) == (Site("0", "update", "gen", "weight"), 7)
    expected = rotation(moment.before["0.weight"], moment.model[0].weight, site=turned.site, step=7)
    assert turned == expected
    assert turned.value > 0
    (rate,) = WATCHABLE["effective-rate"].start()(moment)
    norm = float(moment.model[0].weight.detach().norm())
    assert rate.site == Site("0", "weight", "gen", "weight")
    assert rate.value == pytest.approx(0.5 / norm**2)


def test_without_a_graph_every_weight_rotates_and_no_rate_is_said(moment):
    plain = Moment(moment.model, 7, before=moment.before, optimizer=moment.optimizer)
    assert [each.site.module for each in WATCHABLE["rotation"].start()(plain)] == ["0", "3"]
    assert WATCHABLE["effective-rate"].start()(plain) == []


def test_plain_sgd_goes_down_its_gradient_and_its_weight_has_none_along_itself(moment):
    found = {each.site.module + "." + each.site.leaf: each for each in WATCHABLE["update-alignment"].start()(moment)}
    assert set(found) >= {"0.weight", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert all(each.value == pytest.approx(1.0, abs=1e-3) for name, each in found.items() if name != "0.bias")
    radial = {each.site.module: each for each in WATCHABLE["radial-gradient"].start()(moment)}
    assert set(radial) == {"0", "3"}
    assert abs(radial["0"].value) < 1e-3  # ε of the BatchNorm
    assert abs(radial["3"].value) > 0.1


def test_cleared_gradients_give_no_figure(moment):
    moment.optimizer.zero_grad()
    assert WATCHABLE["update-alignment"].start()(moment) == []
    assert WATCHABLE["radial-gradient"].start()(moment) == []


def test_another_shape_before_the_step_is_refused(moment):
    wrong = Moment(moment.model, 7, before={**moment.before, "0.weight": torch.ones(2)})
    with pytest.raises(InputError, match=re.escape("'0.weight' before the step in the shape that it has, (8, 6)")):
        WATCHABLE["rotation"].start()(wrong)


@pytest.mark.parametrize("name", ["rotation", "effective-rate", "update-alignment", "radial-gradient"])
def test_nothing_is_changed(moment, name):
    watchable = WATCHABLE[name]
    assert all(moment.has(need) for need in watchable.needs)
    model = moment.model
    held = [*model.parameters(), *model.buffers(), *(each.grad for each in model.parameters()), torch.get_rng_state()]
    copies, versions = [each.detach().clone() for each in held], [each._version for each in held]
    before = {key: value.clone() for key, value in moment.before.items()}
    assert watchable.start()(moment)
    held[-1] = torch.get_rng_state()
    assert all(map(torch.equal, held, copies))
    assert [each._version for each in held[:-1]] == versions[:-1]
    assert all(torch.equal(before[key], moment.before[key]) for key in before)


def stored(model, structure, rates=(0.5, 0.5, 0.25)):
    run = MemoryRun()
    run.describe(structure)
    for step, rate in enumerate(rates, 1):
        readings = []
        if step != 2:
            readings = [
                Reading("weight-norm", Site(module, "weight", leaf="weight"), step, 2.0, "L2 norm", 48)
                for module in ("0", "3")
            ]
            readings += [
                Reading("gradient-norm", Site("0", "weight_grad", leaf="weight"), step, 0.5 * step, "L2 norm", 48),
                Reading("gradient-norm", Site("0", "grad_output"), step, 9.0, "L2 norm", 48),
            ]
        run.write(StepRecord(step, values={"learning-rate": rate}, readings=tuple(readings)))
    return run


def test_offline(model, moment):
    run = stored(model, moment.structure)
    rates = OFFLINE["effective-rate"](run)
    assert [(each.site, each.step, each.value) for each in rates] == [(WEIGHT, 1, 0.125), (WEIGHT, 3, 0.0625)]
    ratios = OFFLINE["gradient-ratio"](run)
    assert [(each.site.port, each.step, each.value, each.n) for each in ratios] == [
        ("weight_grad", 1, 0.25, 48),
        ("weight_grad", 3, 0.75, 48),
    ]
    assert [OFFLINE[name](MemoryRun()) for name in ("effective-rate", "gradient-ratio")] == [[], []]


def test_offline_rates_of_another_group_keep_their_ratio(model):
    optimizer = torch.optim.SGD(
        [{"params": model[3].parameters(), "lr": 0.5}, {"params": model[:3].parameters(), "lr": 0.05}]
    )
    run = stored(model, extract(model, optimizer, call=record_call((torch.randn(16, 6),), {})))
    assert [each.value for each in OFFLINE["effective-rate"](run)] == [pytest.approx(0.0125), pytest.approx(0.00625)]


def test_what_is_used_twice_or_shared_is_not_called_scale_invariant():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.other = nn.Linear(6, 6, bias=False), nn.LayerNorm(6), nn.Linear(6, 6, bias=False)

        def forward(self, x):
            h = self.fc(x)
            return self.norm(h) + h, self.norm(self.other(x))

    call = record_call((torch.randn(4, 6),), {})
    assert scale_invariant(extract(Twice(), call=call)) == ()
    tied = nn.Sequential(nn.Linear(6, 6, bias=False), nn.LayerNorm(6), nn.Linear(6, 6, bias=False))
    assert scale_invariant(extract(tied, call=call)) == ("0.weight",)
    tied[2].weight = tied[0].weight
    assert scale_invariant(extract(tied, call=call)) == ()
    assert scale_invariant(extract(tied)) == ()


def test_in_a_run_they_are_stored_beside_what_is_always_taken(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    names = ["rotation", "effective-rate", "update-alignment", "radial-gradient", "gradient-snr"]
    held = torch.randn(32, 6), torch.randint(3, (32,))
    loss_fn = nn.functional.cross_entropy
    with hf.watch(
        model, optimizer, run=tmp_path / "run", every=2, measures=names, batch=held, loss_fn=loss_fn, strict=True
    ):
        for _ in range(6):
            optimizer.zero_grad()
            loss_fn(model(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
            optimizer.step()
    with hf.Run(tmp_path / "run") as run:
        assert set(names) <= set(run.history.measures())
        turned = run.history.readings("rotation")
        assert {each.site.module for each in turned} == {"0"}
        norms = {each.step: each.value for each in run.history.readings("weight-norm", WEIGHT)}
        live = {each.step: each.value for each in run.history.readings("effective-rate")}
        assert live
        assert all(value == pytest.approx(0.1 / norms[step] ** 2, rel=1e-4) for step, value in live.items())
        offline = {each.step: each.value for each in run.measure("effective-rate")}
        assert all(offline[step] == pytest.approx(value, rel=1e-4) for step, value in live.items())
        assert (
            len(run.measure("gradient-ratio"))
            == len(run.history.readings("gradient-norm", WEIGHT.at(port="weight_grad"))) * 6
        )
        assert run.measure("spikes") == []
