import time
from dataclasses import dataclass

import pytest

from holdfast.core.errors import InputError
from holdfast.monitor.cadence import PASSING, SETTLED, SETTLING, Cadence


def test_a_number_observes_the_first_step_and_its_multiples():
    cadence = Cadence(every=5)
    assert [step for step in range(1, 22) if cadence.wants(step)] == [1, 5, 10, 15, 20]


def test_an_alarm_observes_every_step_of_its_window():
    cadence = Cadence(every=100)
    cadence.alarm(step=7, window=3)
    assert [step for step in range(8, 20) if cadence.wants(step)] == [8, 9, 10]
    assert cadence.alarmed(10)
    assert not cadence.alarmed(11)


@dataclass
class Simulated:
    """What was done on a clock of our own, and the share of the bare time that it took after settling."""

    observed: list[int]
    probed: list[int]
    share: float
    rested: int


def simulate(
    monkeypatch, budget: float, *, bare: float, price: float, statistics: float = 0.0, each: float = 0.0, steps=2600
) -> Simulated:
    """Probes cost `price`, a third of it writing; statistics alone `statistics`; a step looked at `each`."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cadence = Cadence("auto", budget)
    observed, probed, spent, resting, rested, slept, asleep = [], [], 0.0, 0, 0, 0, 0.0
    wanted = cadence.wants(1)
    for step in range(1, steps + 1):
        if resting:
            resting -= 1
            clock[0] += bare + PASSING
            spent += PASSING
            if not resting:
                cadence.rested(slept, clock[0] - asleep)
                wanted = cadence.wants(step + 1)
            continue
        probing = wanted and cadence.probes(step)
        begin = clock[0]
        clock[0] += bare
        cost = each + (price if probing else statistics if wanted else 0.0)
        with cadence.timed("measures"):
            clock[0] += cost * 2 / 3
        cadence.account.writing += cost / 3
        observed += [step] * wanted
        probed += [step] * probing
        spent += cost if step > SETTLED else 0.0
        cadence.stepped(observed=wanted, probed=probing, lasted=clock[0] - begin)
        cadence.ready(0.0)
        clock[0] += 100  # between steps somebody else may take his time
        wanted = cadence.wants(step + 1)
        if not wanted:
            slept = resting = cadence.rest(step + 1)
            asleep = clock[0]
            rested += resting
    return Simulated(observed, probed, spent / ((steps - SETTLED) * bare), rested)


@pytest.mark.parametrize("budget", [0.01, 0.05])
@pytest.mark.parametrize(("price", "statistics"), [(0.03, 0.001), (0.004, 0.0001), (0.5, 0.0)])
def test_auto_stays_under_its_budget_after_settling(monkeypatch, budget, price, statistics):
    found = simulate(monkeypatch, budget, bare=0.001, price=price, statistics=statistics)
    assert set(found.probed) >= SETTLING
    assert found.share <= budget
    if statistics and price / 0.001 / budget < 600:
        assert found.share >= 0.6 * budget, "the budget is there to be used"
        assert len(found.observed) > 3 * len(found.probed), "statistics are the cheaper, and come more often"


def test_auto_leaves_to_statistics_and_probes_what_every_step_costs_already(monkeypatch):
    found = simulate(monkeypatch, 0.01, bare=0.001, price=0.003, statistics=0.0003, each=0.000003)
    assert 0.006 <= found.share <= 0.01
    assert found.rested == 0


def test_steps_pass_unseen_where_the_look_at_each_is_too_dear(monkeypatch):
    found = simulate(monkeypatch, 0.01, bare=0.001, price=0.003, statistics=0.0003, each=0.00002)
    assert 0.006 <= found.share <= 0.0105
    assert found.rested > 1500
    assert max(found.observed) > 2000, "something is left for statistics"


def test_the_norm_of_all_gradients_keeps_to_its_part_of_the_budget(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cadence = Cadence("auto", 0.03)
    taken = 0
    for step in range(1, 3001):
        cadence.wants(step)
        begin = clock[0]
        clock[0] += 1.0
        norm = 0.1 if cadence.takes_norm(step, observed=False) else 0.0
        with cadence.timed("hooks"):
            clock[0] += norm
        taken += norm > 0 and step > SETTLED
        cadence.stepped(observed=False, probed=False, norm=norm, lasted=clock[0] - begin)
        cadence.ready(0.0)
    assert 0.08 * 2800 <= taken <= 0.1 * 2800


def test_what_calling_hooks_costs_beside_them_is_booked():
    cadence = Cadence("auto")
    for step in range(10):
        cadence.account.hooks += 0.001
        cadence.stepped(observed=False, probed=False, lasted=0.101 + 0.001 * (step % 3))
        cadence.ready(0.0)
    cadence.account.hooks += 0.002
    cadence.stepped(observed=True, probed=False, lasted=0.110)
    cadence.ready(0.0)
    assert cadence.account.hooks == pytest.approx(10 * 0.001 + 0.002 + (0.110 - 0.002 - 0.101))
    cadence.stepped(observed=True, probed=False, lasted=0.05)  # shorter than the others: nothing is taken back
    assert cadence.account.hooks == pytest.approx(0.019)


def test_preparing_a_step_is_no_part_of_how_long_it_lasts():
    cadence = Cadence("auto")
    for _ in range(10):
        cadence.account.hooks += 0.004
        cadence.ready(0.004)
        cadence.stepped(observed=False, probed=False, lasted=0.1)
    assert cadence.account.bare == pytest.approx(10 * 0.1)
    cadence.stepped(observed=True, probed=False, lasted=0.1)
    assert cadence.account.hooks == pytest.approx(0.04), "nothing hidden in a step as long as the others"


def test_steps_that_passed_unseen_count_no_longer_than_they_lasted():
    cadence = Cadence("auto")
    for _ in range(10):
        cadence.stepped(observed=False, probed=False, lasted=0.1)
    cadence.rested(50, seconds=100.0)
    assert cadence.account.run == pytest.approx(6.0 + 50 * PASSING, abs=1e-9)
    cadence.rested(50, seconds=2.0)
    assert cadence.account.run == pytest.approx(8.0 + 50 * PASSING, abs=1e-9)
    assert cadence.account.hooks == pytest.approx(100 * PASSING)
    assert cadence.account.rested == 100
    assert not cadence.wants(111), "a step is looked at first"


def test_where_steps_are_shorter_than_what_is_left_on_some_are_observed_all_the_same(monkeypatch):
    found = simulate(monkeypatch, 0.01, bare=0.0001, price=0.003, statistics=0.0003, each=0.00002, steps=40_000)
    assert found.rested > 35_000
    assert sum(step > SETTLED for step in found.observed) >= 5
    assert found.share <= 0.01 + PASSING / 0.0001


def test_measures_asked_for_have_a_part_of_the_budget_of_their_own(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cadence = Cadence("auto", 0.06, asked=True)
    settling, later = [], 0
    for step in range(1, 6001):
        wanted = cadence.wants(step)
        probing = wanted and cadence.probes(step)
        asking = probing and cadence.asks(step)
        begin = clock[0]
        clock[0] += 1.0
        with cadence.timed("measures"):
            clock[0] += 0.01 * wanted + 0.1 * probing + 5.0 * asking
        cadence.stepped(observed=wanted, probed=probing, asked=5.0 * asking, lasted=clock[0] - begin)
        cadence.ready(0.0)
        settling += [step] * (asking and step <= SETTLED)
        later += asking and step > SETTLED
    assert settling == [2, 20, 200]
    assert 0.015 * 5800 <= 5.0 * later <= 0.02 * 5800
    assert not Cadence("auto").asks(2)


def test_auto_observes_every_step_when_that_is_cheap(monkeypatch):
    found = simulate(monkeypatch, 0.01, steps=400, bare=1.0, price=0.001, statistics=0.0001)
    assert found.probed[-190:] == list(range(211, 401))


def test_probes_at_a_cadence_of_their_own():
    cadence = Cadence(every=2, probe_every=6)
    wanted = [step for step in range(1, 20) if cadence.wants(step)]
    assert wanted == [1, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [step for step in wanted if cadence.probes(step)] == [1, 6, 12, 18]
    cadence = Cadence(every=4, probe_every=6)  # a step with probes is observed
    assert [step for step in range(1, 14) if cadence.wants(step)] == [1, 4, 6, 8, 12]


def test_at_a_fixed_cadence_all_of_the_budget_is_the_probes(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cadence = Cadence(every=1, budget=0.1, probe_every="auto")
    probed = 0
    for step in range(1, 2001):
        assert cadence.wants(step)
        probing = cadence.probes(step)
        begin = clock[0]
        clock[0] += 1.0
        with cadence.timed("probes"):
            clock[0] += 1.0 if probing else 0.01
        cadence.stepped(observed=True, probed=probing, lasted=clock[0] - begin)
        cadence.ready(0.0)
        probed += probing and step > SETTLED
    assert 0.08 * 1800 <= probed <= 0.1 * 1800


@pytest.mark.parametrize("value", [0, -1, True])
def test_an_unusable_cadence_of_probes(value):
    with pytest.raises(InputError, match="probe_every='auto' or a whole number of steps ≥ 1"):
        Cadence(every=1, probe_every=value)


@pytest.mark.parametrize("every", [0, -1, True])
def test_an_unusable_cadence(every):
    with pytest.raises(InputError, match="every='auto' or a whole number of steps ≥ 1"):
        Cadence(every=every)
