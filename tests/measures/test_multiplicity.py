import math

import numpy as np
import pytest
from scipy import stats

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.measures.multiplicity import discoveries, exceedance, within_noise


def reading(module, step, value, floor=1.0, lag=1, measure="parameter-drift"):
    return Reading(measure, Site(module, "input"), step, value, "reference SD", 64, floor, lag=lag)


def test_exceedance_is_the_upper_tail_of_the_binomial():
    naive = sum(math.comb(20, k) * 0.05**k * 0.95 ** (20 - k) for k in range(4, 21))
    assert exceedance(4, 20) == pytest.approx(naive)
    assert exceedance(0, 20) == pytest.approx(1)
    assert exceedance(0, 0) == 1


def test_discoveries_are_benjamini_hochberg():
    p = [0.001, 0.012, 0.021, 0.04, 0.9]
    step_up = [value <= 0.05 * rank / 5 for rank, value in enumerate(p, 1)]
    assert step_up == [True, True, True, True, False]
    assert discoveries(p) == step_up
    assert discoveries([0.04] + [0.5] * 20) == [False] * 21


def test_tails_and_discoveries_are_scipys():
    generator = np.random.default_rng(0)
    for observed in (1, 7, 400):
        for exceeding in {0, 1, observed // 2, observed}:
            assert exceedance(exceeding, observed) == pytest.approx(stats.binom.sf(exceeding - 1, observed, 0.05))
    for count in (1, 5, 200):
        p = (generator.random(count) ** 4).tolist()
        assert discoveries(p) == (stats.false_discovery_control(p) <= 0.05).tolist()


def test_noise_at_many_sites_is_rarely_a_discovery():
    """Fifty sites, 100 steps, readings above their floors 5 % of the time: at most 5 % of such runs say anything."""
    generator = np.random.default_rng(0)
    counts = generator.binomial(100, 0.05, (400, 50))
    p_value = [exceedance(k, 100) for k in range(101)]
    runs = [any(discoveries([p_value[k] for k in row])) for row in counts]
    assert np.mean(runs) <= 0.07


def test_one_reading_above_its_floor_is_no_evidence_among_many_sites():
    readings = [reading(f"fc{k}", 1, 2.0 if k == 3 else 0.5) for k in range(10)]
    assert within_noise(readings) == [True] * 10
    # with a second site like it, it is not alone; above its floor twice, it need not be
    assert within_noise([*readings, reading("fc3", 2, 2.0), reading("fc3", 3, 2.0)])[3] is False


def test_measures_and_lags_of_a_site_are_judged_apart():
    moving = [reading("a", step, 2.0) for step in range(5)]
    other_lag = [reading("a", step, 0.5, lag=100) for step in range(5)]
    other_measure = [reading("a", step, 0.5, measure="scale-shift") for step in range(5)]
    mixed = [each for group in zip(moving, other_lag, other_measure, strict=True) for each in group]
    assert within_noise(mixed) == [False, True, True] * 5


def test_figures_without_a_floor_are_exact_and_what_is_not_finite_is_not_believed():
    exact, broken, unreachable = (
        reading("a", 1, 2.0, floor=None),
        reading("b", 1, math.nan),
        reading("c", 1, 2.0, floor=math.inf),
    )
    assert within_noise([exact, broken, unreachable]) == [False, True, True]
    assert within_noise([]) == []


def test_false_discoveries_by_simulation(shapes_unchecked):
    """Nothing moves at 180 sites and 20 move plainly: of what is not within noise at most 5 % did not move, in the
    mean of 20 runs and with two standard errors; and the sites that move are found."""
    generator = np.random.default_rng(0)
    false, found = [], []
    for _ in range(20):
        above = generator.random((200, 12)) < np.where(np.arange(200) < 20, 0.6, 0.05)[:, None]
        readings = [reading(f"fc{k}", step, 2.0 if above[k, step] else 0.5) for k in range(200) for step in range(12)]
        stands = ~np.array(within_noise(readings)).reshape(200, 12)
        assert (stands.all(1) == stands.any(1)).all()
        false.append(stands[20:, 0].sum() / max(1, stands[:, 0].sum()))
        found.append(stands[:20, 0].mean())
    assert np.mean(false) <= 0.05 + 2 * np.std(false) / math.sqrt(20)
    assert np.mean(found) >= 0.9
