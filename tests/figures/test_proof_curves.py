from __future__ import annotations

import math

import numpy as np
import pytest

from holdfast.clinic.arms import Trial
from holdfast.clinic.proof import TREATED, UNTREATED, Arm, Proof, compare
from holdfast.figures.proof_curves import proof_curves

STEPS = 50


def trial(level: float, seed: int, accuracy: float, steps: int = STEPS) -> Trial:
    numbers = np.random.default_rng(seed)
    losses = level * np.exp(-np.arange(steps) / 30) + 0.01 * numbers.normal(size=steps)
    diverged = steps < STEPS
    return Trial((*losses.tolist(), *([math.inf] if diverged else [])), math.nan if diverged else level, accuracy, 1e-3)


def proof_of(*arms: Arm) -> Proof:
    by_name = {arm.name: arm for arm in arms}
    comparisons = tuple(
        compare("accuracy", by_name[TREATED], arm, higher_is_better=True, alpha=0.05)
        for arm in arms
        if arm.name != TREATED
    )
    seeds = len(arms[0].trials)
    return Proof("insert-norm", "helps", "accuracy rose", "accuracy", comparisons, arms, seeds, STEPS)


def arm(name: str, level: float, accuracy: float, seeds: int = 4, steps: int = STEPS) -> Arm:
    return Arm(name, tuple(trial(level, seed, accuracy + 0.01 * seed * (level > 1), steps) for seed in range(seeds)))


@pytest.fixture
def proof() -> Proof:
    return proof_of(arm(UNTREATED, 2.0, 0.5), arm(TREATED, 1.0, 0.9), arm("learning rate × <3>", 2.1, 0.45))


def named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_a_curve_is_the_mean_over_the_seeds_and_its_band_student_s_interval(proof):
    figure = proof_curves(proof)
    series = np.array([each.losses for each in proof.arm(TREATED).trials])
    smooth = np.array([[np.median(row[max(0, at - 1) : at + 2]) for at in range(STEPS)] for row in series])
    line = named(figure, "treated")
    np.testing.assert_array_equal(line.x, np.arange(1, STEPS + 1))
    np.testing.assert_allclose(line.y, smooth.mean(0))
    band = named(figure, "treated, 95 % interval of the mean over seeds")
    half = 3.182446 * smooth.std(0, ddof=1) / 2  # t(0.975, 3) · s / √4
    np.testing.assert_allclose(band.y[:STEPS], smooth.mean(0) + half, rtol=1e-6)
    np.testing.assert_allclose(band.y[STEPS:][::-1], smooth.mean(0) - half, rtol=1e-6)


def test_differences_stand_one_a_seed_beside_their_interval(proof):
    figure = proof_curves(proof)
    seeds = [trace for trace in figure.data if trace.name == "one seed"]
    means = [trace for trace in figure.data if trace.name == "mean, 95 % interval"]
    assert [tuple(trace.x) for trace in seeds] == [each.differences for each in proof.comparisons]
    for trace, comparison in zip(means, proof.comparisons, strict=True):
        assert trace.x == (comparison.mean,)
        assert trace.error_x.array[0] == pytest.approx(comparison.interval[1] - comparison.mean)
        assert trace.error_x.arrayminus[0] == pytest.approx(comparison.mean - comparison.interval[0])


def test_it_is_told_in_words_and_names_are_no_markup(proof):
    figure = proof_curves(proof)
    assert figure.layout.meta["alt"] == "Proof: insert-norm, helps. accuracy rose."
    assert [set(trace.y) for trace in figure.data if trace.name == "one seed"][1] == {
        "against<br>learning rate × &lt;3&gt;"
    }
    assert figure.layout.xaxis2.title.text == "accuracy: treated − other arm"


def test_an_arm_that_diverged_is_drawn_as_far_as_every_seed_came():
    figure = proof_curves(proof_of(arm(UNTREATED, 2.0, 0.5, steps=20), arm(TREATED, 1.0, 0.9)))
    assert list(named(figure, "untreated").x) == list(range(1, 21))
    assert named(figure, "treated").x[-1] == STEPS
    assert not [trace for trace in figure.data if trace.name.startswith("mean, ")]  # the whole line is no bar


def test_one_seed_has_no_band():
    figure = proof_curves(proof_of(arm(UNTREATED, 2.0, 0.5, seeds=1), arm(TREATED, 1.0, 0.9, seeds=1)))
    assert not [trace for trace in figure.data if "interval" in trace.name]


def test_nothing_finite_is_said():
    figure = proof_curves(proof_of(arm(UNTREATED, 2.0, 0.5, steps=0), arm(TREATED, 1.0, 0.9, steps=0)))
    assert figure.layout.meta["blank"]
    assert "no training had a finite loss" in figure.layout.meta["alt"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_themes(proof, theme):
    assert proof_curves(proof, theme=theme).layout.template.layout.paper_bgcolor
