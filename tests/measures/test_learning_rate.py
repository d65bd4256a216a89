"""Sweeps over learning rates: the edge, what diverged means, what counts."""

from __future__ import annotations

import math

import pytest

from holdfast.core.errors import InputError
from holdfast.measures import learning_rate_sensitivity, maximum_learning_rate, sweep_learning_rates
from holdfast.measures.learning_rate_sweep import Sweep


def test_edge_is_bracketed_and_bisected() -> None:
    tried: list[float] = []

    def train(rate: float) -> float:
        tried.append(rate)
        return 0.1 if rate < 0.3 else math.nan

    sweep = sweep_learning_rates(train, 1.0, low=0.01, high=1.0, points=3, refine=6)
    assert tried[:3] == [0.01, pytest.approx(0.1), 1.0]
    reading = maximum_learning_rate(sweep)
    low, high = reading.interval
    assert reading.value == low < 0.3 <= high
    assert high / low == pytest.approx(10 ** (1 / 2**6))
    assert reading.n == len(tried) == 9


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1.0001])
def test_diverged_is_a_loss_above_the_first_or_not_finite(bad: float) -> None:
    sweep = sweep_learning_rates(lambda rate: bad if rate > 0.5 else 1.0, 1.0, low=0.1, high=1.0, points=2, refine=0)
    assert sweep.edge == (0.1, 1.0)


def test_one_repeat_that_diverged_is_enough() -> None:
    losses = iter([0.1, 0.1, 0.1, math.nan])
    sweep = sweep_learning_rates(lambda _: next(losses), 1.0, low=0.1, high=1.0, points=2, repeats=2, refine=0)
    assert sweep.edge == (0.1, 1.0)


def test_stable_rates_above_one_that_diverged_do_not_count() -> None:
    sweep = Sweep(1.0, (0.1, 0.2, 0.4), ((0.5,), (2.0,), (0.3,)))
    assert maximum_learning_rate(sweep).interval == (0.1, 0.2)


def test_a_grid_without_an_edge() -> None:
    fine = sweep_learning_rates(lambda _: 0.1, 1.0, low=0.1, high=1.0)
    assert maximum_learning_rate(fine).interval == (1.0, math.inf)
    assert maximum_learning_rate(sweep_learning_rates(lambda _: math.nan, 1.0, low=0.1, high=1.0)) is None
    assert learning_rate_sensitivity(sweep_learning_rates(lambda _: math.nan, 1.0, low=0.1, high=1.0)) is None


def test_sensitivity_caps_at_the_first_loss_and_leaves_bisections_out() -> None:
    sweep = Sweep(2.0, (0.1, 0.2, 0.4, 0.8), ((1.0,), (0.5,), (9.0,), (math.nan,)), ((0.28, (0.1,)),))
    reading = learning_rate_sensitivity(sweep)
    assert reading.value == pytest.approx((0.5 + 0.0 + 1.5 + 1.5) / 4)
    assert (reading.n, reading.interval) == (4, None)


def test_sensitivity_has_an_interval_over_repeats() -> None:
    sweep = Sweep(2.0, (0.1, 0.2), ((1.0, 1.2, 0.8), (0.5, 0.6, 0.6)))
    reading = learning_rate_sensitivity(sweep)
    assert reading.value == pytest.approx((0.25 + 0.3 + 0.1) / 3)
    assert reading.interval[0] <= reading.value <= reading.interval[1]
    assert reading.interval[1] - reading.value == pytest.approx(4.302653 * 0.104083 / math.sqrt(3), rel=1e-5)


def test_table_holds_every_training_in_order() -> None:
    sweep = sweep_learning_rates(lambda rate: rate, 0.5, low=0.1, high=1.0, points=2, refine=1)
    table = sweep.table()
    assert table.rows == ("0.1", "0.316228", "1")
    assert (table.columns, table.n) == (("repeat 1",), 3)


@pytest.mark.parametrize(
    "options",
    [
        {"low": 0.0, "high": 1.0},
        {"low": 1.0, "high": 0.1},
        {"low": 0.1, "high": math.inf},
        {"low": 0.1, "high": 1.0, "points": 1},
        {"low": 0.1, "high": 1.0, "repeats": 0},
    ],
)
def test_refuses_a_grid_that_is_none(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="a grid of two learning rates"):
        sweep_learning_rates(lambda _: 0.1, 1.0, **options)


def test_refuses_an_initial_loss_that_is_not_finite() -> None:
    with pytest.raises(InputError, match="a finite initial loss"):
        sweep_learning_rates(lambda _: 0.1, math.nan, low=0.1, high=1.0)
