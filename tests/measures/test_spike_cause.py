from __future__ import annotations

import numpy as np
import pytest

from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.measures.spike_cause import spike_cause
from holdfast.measures.spikes import of_history
from holdfast.store.memory import MemoryRun

# Shapes are checked in the first test of `test_spikes`; here they would take most of the time.
pytestmark = pytest.mark.usefixtures("shapes_unchecked")

STEPS, AT = 400, 300
SITES = tuple(Site(f"l{k}", "input") for k in range(20))
WEIGHTS = tuple(Site(f"l{k}", "update", leaf="weight") for k in range(20))


def course(seed: int, *, every: int = 1, readings: bool = True, **planted: dict[int, float]) -> MemoryRun:
    """A run of noise; what is planted multiplies a series, or the readings at one site, at some steps."""
    generator = np.random.default_rng(seed)
    run = MemoryRun()
    for step in range(1, STEPS + 1):
        noise = np.exp(0.15 * generator.standard_normal(2 + 40)).tolist()

        def at(name: str, step: int = step) -> float:
            return planted.get(name, {}).get(step, 1.0)

        seen = []
        if readings and step % every == 0:
            seen = [
                Reading("parameter-drift", site, step, value * at(f"drift_{site.module}"), "reference SD", 64, lag=1)
                for site, value in zip(SITES, noise[2:22], strict=True)
            ]
            seen += [
                Reading("update-ratio", site, step, 1e-3 * value * at(f"update_{site.module}"), "ratio", 64, lag=1)
                for site, value in zip(WEIGHTS, noise[22:], strict=True)
            ]
        values = {
            "loss": noise[0] * at("loss"),
            "gradient-norm": noise[1] * at("gradient"),
            "learning-rate": 0.1 * at("rate"),
        }
        run.write(StepRecord(step, values=values, readings=tuple(seen)))
    return run


def cause_of(run: MemoryRun):
    (spike,) = of_history(run)
    return spike_cause(run, spike)


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_alone(seed):
    cause = cause_of(course(seed, loss={AT: 6.0}, gradient={AT: 6.0}))
    assert (cause.origin, cause.precursors, cause.update) == ("data", (), ())
    assert cause.gradient == pytest.approx(np.log(6), abs=0.7)
    assert "the next batch was back to normal" in cause.reason


@pytest.mark.parametrize("seed", range(3))
def test_the_step_before(seed):
    after = {AT + k: 6.0 for k in range(20)}
    cause = cause_of(course(seed, loss=after, gradient=after, update_l7={AT - 1: 20.0}))
    assert cause.origin == "update"
    assert cause.update[0][0] == "update-ratio at 'l7.weight'"
    assert cause.update[0][1] == pytest.approx(np.log(20), abs=0.7)
    assert "×" in cause.reason


@pytest.mark.parametrize(("series", "name"), [("gradient", "gradient-norm"), ("rate", "learning-rate")])
def test_the_step_before_by_the_cheap_series(series, name):
    cause = cause_of(course(0, readings=False, loss={AT: 6.0}, **{series: {AT - 1: 10.0}}))
    assert (cause.origin, cause.update[0][0]) == ("update", name)


@pytest.mark.parametrize("every", [1, 3])
def test_a_site_that_drifts_first_with_its_lead(every):
    late = dict.fromkeys(range(AT - 24, AT + 1), 8.0)
    cause = cause_of(course(0, every=every, loss={AT: 6.0}, gradient={AT: 6.0}, drift_l3=late, update_l7={AT - 1: 9.0}))
    assert cause.origin == "precursor"
    first = cause.precursors[0]
    assert (first.measure, first.site, first.step, first.lead) == ("parameter-drift", SITES[3], AT - 24, 24)
    assert first.readings == 24 // every
    assert len(cause.precursors) == 1


def test_a_drift_that_was_over_before_is_no_precursor():
    early = dict.fromkeys(range(AT - 40, AT - 20), 8.0)
    assert cause_of(course(0, loss={AT: 6.0}, gradient={AT: 6.0}, drift_l3=early)).origin == "data"


def test_what_cannot_be_said():
    lasting = {AT + k: 6.0 for k in range(20)}
    cause = cause_of(course(0, loss=lasting, gradient=lasting))
    assert (cause.origin, "lasted 20 steps" in cause.reason) == ("unknown", True)
    cause = cause_of(course(0, loss={AT: 6.0}))
    assert (cause.origin, "gradient of that batch was as usual" in cause.reason) == ("unknown", True)
    run = MemoryRun()
    for step, value in enumerate(np.exp(0.1 * np.random.default_rng(0).standard_normal(STEPS)).tolist(), 1):
        run.write(StepRecord(step, values={"loss": value * (6.0 if step == AT else 1.0)}))
    cause = cause_of(run)
    assert (cause.origin, cause.gradient) == ("unknown", None)
    assert f"nothing was recorded of step {AT - 1}" in cause.reason


@pytest.mark.slow
def test_a_bad_batch_in_noise_has_no_false_precursor_or_update():
    """40 series of noise and two of the run's: of 60 bad batches at most 3 are laid to something else."""
    wrong = sum(cause_of(course(seed, loss={AT: 8.0}, gradient={AT: 8.0})).origin != "data" for seed in range(60))
    assert wrong <= 3
