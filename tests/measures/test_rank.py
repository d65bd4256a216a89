from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.core.errors import InputError
from holdfast.live.moment import Moment
from holdfast.live.replay import record_call
from holdfast.measures import WATCHABLE
from holdfast.measures.effective_rank import effective_rank
from holdfast.measures.participation_ratio import participation_ratio
from holdfast.measures.rank_window import RankWindow
from holdfast.measures.spectrum import parts_of, projected
from holdfast.measures.variance_rank import variance_rank
from holdfast.stats.covariance import Covariance

MEASURES = (effective_rank, participation_ratio, variance_rank)


def moment(model, x, step=1):
    return Moment(model, step, call=record_call((x,), {}))


@pytest.mark.parametrize("measure", MEASURES)
def test_inconclusive(measure, site):
    x = torch.randn(100, 10)
    assert measure(parts_of(x), site=site, step=1).n == 100
    assert measure(parts_of(x[:99]), site=site, step=1) is None
    assert measure(parts_of(torch.ones(100, 10)), site=site, step=1) is None
    assert measure([], site=site, step=1) is None
    assert measure([Covariance.empty(3)], site=site, step=1) is None
    x[0, 0] = float("nan")  # one sample fewer than is needed
    assert measure(parts_of(x), site=site, step=1) is None


def test_unequal_and_empty_parts(site):
    """The jackknife weighs parts by their size: cut otherwise, the same samples give nearly the same figure."""
    x = torch.randn(600, 6)
    even = effective_rank(parts_of(x), site=site, step=1)
    cuts = [20, 100, 30, 70, 40, 60, 80, 20, 90, 90]
    odd = effective_rank([*map(Covariance.of, x.split(cuts)), Covariance.empty(6)], site=site, step=1)
    assert odd.value == pytest.approx(even.value, rel=0.003)
    assert odd.interval is not None
    assert effective_rank([*map(Covariance.of, x.chunk(7))], site=site, step=1).interval is None


def test_a_window_of_steps():
    model = nn.Sequential(nn.Linear(20, 30), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(30, 1))
    rank = WATCHABLE["effective-rank"].start()
    assert WATCHABLE["effective-rank"].start() is not rank
    counts = []
    for step in range(1, 21):
        readings = rank(moment(model, torch.randn(50, 20), step))
        counts.append({str(each.site): each.n for each in readings if each.measure == "variance-rank"})
        assert all(each.step == step for each in readings)
    assert counts[3] == {"net/0:input#0@train": 200}
    assert counts[5] == {f"net/{k}:input#0@train": 300 for k in (0, 2, 3)}
    assert counts[-1]["net/0:input#0@train"] == 400  # twice what is needed, and no more
    assert counts[-1]["net/3:input#0@train"] == 600
    # what the first layer is given has 20 equal directions
    assert next(iter(readings)).value == pytest.approx(20, rel=0.03)


def test_channels_are_means_over_positions():
    """Four channels that differ in pattern but whose means all move together have rank 1."""
    base = torch.randn(64, 1, 1, 1)
    x = (base + torch.randn(4, 1, 1)).expand(64, 4, 5, 5) + torch.linspace(-1, 1, 5)
    readings = RankWindow()(moment(nn.Conv2d(4, 2, 3), x))
    assert [each.value for each in readings] == pytest.approx([1.0, 1.0, 0.25], rel=1e-5)


def test_a_wide_site_and_a_layer_that_is_replaced():
    rank, x = RankWindow(), torch.randn(700, 100)
    assert {each.n for each in rank(moment(nn.Sequential(nn.Linear(100, 2)), x))} == {700}
    assert {each.n for each in rank(moment(nn.Sequential(nn.Linear(5, 2)), x[:, :5]))} == {700}


def test_nothing_is_touched():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU(inplace=True))
    x = torch.randn(64, 4)
    call = record_call((x,), {})
    model(x).sum().backward()
    before = copy.deepcopy(model.state_dict()), [each.grad.clone() for each in model.parameters()]
    random = torch.get_rng_state(), np.random.get_state()[1].tolist()
    readings = RankWindow()(Moment(model, 1, call=call))
    assert len(readings) == 3 * 3
    after = model.state_dict(), [each.grad for each in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), after[0].values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert torch.equal(random[0], torch.get_rng_state())
    assert random[1] == np.random.get_state()[1].tolist()
    assert model.training


def test_a_moment_without_a_forward_is_refused():
    model, x = nn.Linear(2, 2), torch.randn(40, 2)
    with pytest.raises(InputError, match="expected a moment with the forward to repeat; got call=None"):
        RankWindow()(Moment(model, 1))
    changed = moment(model, x)
    x.zero_()
    with pytest.raises(InputError, match="changed in place"):
        RankWindow()(changed)


def test_wide_sites_are_projected_in_full_precision_under_autocast():
    x = torch.randn(700, 80)
    plain = projected(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(projected(x), plain)
