import time

import pytest

from holdfast.core.errors import InputError
from holdfast.monitor.cadence import SETTLED, SETTLING, Cadence


def test_a_number_observes_the_first_step_and_its_multiples():
    cadence = Cadence(every=5)
    assert [step for step in range(1, 22) if cadence.wants(step)] == [1, 5, 10, 15, 20]


def test_an_alarm_observes_every_step_of_its_window():
    cadence = Cadence(every=100)
    cadence.alarm(step=7, window=3)
    assert [step for step in range(8, 20) if cadence.wants(step)] == [8, 9, 10]
    assert cadence.alarmed(10)
    assert not cadence.alarmed(11)


def simulate(monkeypatch, budget: float, steps: int, bare: float, price: float) -> tuple[list[int], float]:
    """Steps observed, and the share after settling, on a clock of our own; a third of the price is writing."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cadence = Cadence("auto", budget)
    observed, spent_after_settling = [], 0.0
    for step in range(1, steps + 1):
        wanted = cadence.wants(step)
        begin = clock[0]
        clock[0] += bare
        if wanted:
            with cadence.timed("measures"):
                clock[0] += price * 2 / 3
            cadence.account.writing += price / 3
            cadence.observed()
            observed.append(step)
            spent_after_settling += price if step > SETTLED else 0.0
        cadence.account.run += clock[0] - begin
        clock[0] += 100  # between steps somebody else may take his time
    return observed, spent_after_settling / ((steps - SETTLED) * bare)


def test_auto_stays_under_its_budget_after_settling(monkeypatch):
    for budget, price in [(0.01, 0.03), (0.05, 0.004), (0.01, 0.5)]:
        observed, share = simulate(monkeypatch, budget, 6000, bare=0.001, price=price)
        assert set(observed) >= SETTLING
        assert share <= budget
        if price / 0.001 / budget < 3000:
            assert share >= 0.7 * budget, "the budget is there to be used"


def test_auto_observes_every_step_when_that_is_cheap(monkeypatch):
    observed, _ = simulate(monkeypatch, 0.01, 400, bare=1.0, price=0.001)
    assert observed[-190:] == list(range(211, 401))


@pytest.mark.parametrize("every", [0, -1, True])
def test_an_unusable_cadence(every):
    with pytest.raises(InputError, match="every='auto' or a whole number of steps ≥ 1"):
        Cadence(every=every)
