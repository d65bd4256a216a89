"""The landscape along the gradient: side effects, refusals, comparison, the door of a watch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.errors import InputError
from holdfast.core.reading import Reading, Table
from holdfast.core.site import Site
from holdfast.live.moment import Moment
from holdfast.measures import WATCHABLE, compare_landscapes, landscape
from holdfast.measures.landscape import MULTIPLES, Landscape


def problem() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.4), nn.Linear(6, 3))
    return model, (torch.randn(16, 8), torch.randint(3, (16,)))


def test_tables_have_a_row_a_step_and_a_column_a_direction() -> None:
    model, batch = problem()
    seen = landscape(model, F.cross_entropy, batch, learning_rate=0.1, directions=3, step=7)
    for table in (seen.losses, seen.changes, seen.slopes):
        assert table.rows == ("0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.35", "0.4")
        assert table.columns == ("-gradient", "random 1", "random 2", "random 3")
        assert (len(table.values), len(table.values[0]), table.n, table.step) == (8, 4, 16, 7)
    along = [row[0] for row in seen.losses.values]
    assert seen.reading("loss-variation").value == max(along) - min(along)
    assert seen.reading("gradient-predictiveness").value == max(row[0] for row in seen.changes.values)
    assert seen.reading("effective-smoothness").value == max(row[0] for row in seen.slopes.values)
    assert len(seen.contrast) == 3 * 4
    # points of all directions lie equally far away
    for multiple, changes, slopes in zip(MULTIPLES, seen.changes.values, seen.slopes.values, strict=True):
        for change, slope in zip(changes, slopes, strict=True):
            assert change / slope == pytest.approx(0.1 * multiple * seen.gradient_norm, rel=1e-5)


def test_model_and_generators_stay_bit_for_bit() -> None:
    model, batch = problem()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    versions = [each._version for each in (*model.parameters(), *model.buffers())]
    gradients = [each.grad.clone() for each in model.parameters()]
    state = torch.get_rng_state()
    first = landscape(model, F.cross_entropy, batch, learning_rate=0.1)
    assert landscape(model, F.cross_entropy, batch, learning_rate=0.1) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert versions == [each._version for each in (*model.parameters(), *model.buffers())]
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True))


def test_without_a_gradient_to_follow_there_is_none() -> None:
    layer = nn.Linear(2, 1)
    x = torch.ones(4, 2)
    assert landscape(layer, lambda out, _: (out * 0.0).sum(), (x, None), learning_rate=0.1) is None
    assert landscape(layer, lambda out, _: (out * math.inf).sum(), (x, None), learning_rate=0.1) is None


def test_a_loss_that_overflows_within_reach_is_infinite() -> None:
    layer = nn.Linear(1, 1, bias=False)
    seen = landscape(layer, lambda out, _: (out**4).mean(), (torch.ones(4, 1), None), learning_rate=1e30)
    for name in ("loss-variation", "gradient-predictiveness", "relative-gradient-change", "effective-smoothness"):
        assert seen.reading(name).value == math.inf


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_refuses_a_learning_rate_that_is_none(rate: float) -> None:
    model, batch = problem()
    with pytest.raises(InputError, match="a learning rate above 0"):
        landscape(model, F.cross_entropy, batch, learning_rate=rate)


def test_asking_for_a_reading_that_is_not_there_names_those_that_are() -> None:
    model, batch = problem()
    with pytest.raises(InputError, match=r"loss-variation \| gradient-predictiveness"):
        landscape(model, F.cross_entropy, batch, learning_rate=0.1).reading("smoothness")


class TestTake:
    def test_uses_the_learning_rate_of_plain_descent(self) -> None:
        model, batch = problem()
        moment = Moment(
            model, 4, "mine", batch=batch, loss_fn=F.cross_entropy, optimizer=torch.optim.SGD(model.parameters(), 0.2)
        )
        found = WATCHABLE["landscape"].start()(moment)
        alone = landscape(model, F.cross_entropy, batch, learning_rate=0.2, directions=0)
        tables = [each for each in found if isinstance(each, Table)]
        assert [table.values for table in tables] == [alone.losses.values, alone.changes.values, alone.slopes.values]
        readings = [each for each in found if isinstance(each, Reading)]
        assert {(each.site, each.step) for each in readings} == {(Site("", "weight", stream="mine"), 4)}

    def test_uses_the_length_of_any_other_step(self) -> None:
        model, batch = problem()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        before = {name: each.detach().clone() for name, each in model.named_parameters()}
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        moment = Moment(model, 1, before=before, batch=batch, loss_fn=F.cross_entropy, optimizer=optimizer)
        changes, slopes = (
            next(
                each
                for each in WATCHABLE["landscape"].start()(moment)
                if isinstance(each, Table) and each.measure == name
            )
            for name in ("gradient-predictiveness", "effective-smoothness")
        )
        # ‖change‖ / slope is the length of the way
        length = math.sqrt(sum(float((p.detach() - before[n]).square().sum()) for n, p in model.named_parameters()))
        assert changes.values[1][0] / slopes.values[1][0] == pytest.approx(length, rel=1e-4)

    def test_says_nothing_without_a_loss_or_a_step(self) -> None:
        model, batch = problem()
        take = WATCHABLE["landscape"].start()
        assert take(Moment(model, 1, optimizer=torch.optim.SGD(model.parameters(), 0.2))) == []
        assert take(Moment(model, 1, batch=batch, loss_fn=F.cross_entropy)) == []


def at(step: int, loss: float, smoothness: float) -> Landscape:
    empty = Table("loss-variation", step, "loss", (), (), (), 16)
    reading = Reading("effective-smoothness", Site("", "weight"), step, smoothness, "1 / learning rate", 16)
    return Landscape(loss, 1.0, empty, empty, empty, (reading,))


class TestComparison:
    def test_at_equal_step(self) -> None:
        found = compare_landscapes([at(1, 2.0, 8.0), at(2, 1.0, 4.0)], [at(2, 1.5, 2.0), at(3, 1.0, 1.0)], at="step")
        assert (found.rows, found.values) == (("2",), ((4.0, 2.0, 0.5),))

    def test_at_equal_loss_two_paces_through_one_landscape_are_alike(self) -> None:
        slow = [at(step, 2.0**-step, 4.0**-step) for step in range(9)]
        fast = [at(step, 4.0**-step, 16.0**-step) for step in range(5)]
        found = compare_landscapes(slow, fast)
        assert found.rows[0] == "1"
        assert float(found.rows[-1]) == pytest.approx(2.0**-8, rel=1e-3)
        assert found.values[0] == (1.0, 1.0, 1.0)
        assert found.values[-1][2] == pytest.approx(1.0)
        # at equal steps the faster one looks smoother for that alone
        assert compare_landscapes(slow, fast, at="step").values[-1][2] == pytest.approx(4.0**-4)

    def test_losses_that_rise_again_do_not_count_twice(self) -> None:
        one = [at(1, 4.0, 8.0), at(2, 2.0, 4.0), at(3, 3.0, 100.0), at(4, 1.0, 2.0)]
        assert max(row[0] for row in compare_landscapes(one, one).values) == pytest.approx(8.0)

    def test_nothing_in_common_is_none(self) -> None:
        assert compare_landscapes([at(1, 4.0, 8.0), at(2, 3.0, 8.0)], [at(1, 2.0, 8.0), at(2, 1.0, 8.0)]) is None
        assert compare_landscapes([at(1, 4.0, 8.0)], [at(2, 2.0, 8.0)], at="step") is None

    def test_refuses_an_empty_side(self) -> None:
        with pytest.raises(InputError, match="landscapes of both models"):
            compare_landscapes([], [at(1, 1.0, 1.0)])


def test_figures_of_one_walk_are_one_measurement_under_any_of_their_names() -> None:
    names = "loss-variation", "gradient-predictiveness", "relative-gradient-change", "effective-smoothness"
    assert all(WATCHABLE[name] is WATCHABLE["landscape"] for name in names)
