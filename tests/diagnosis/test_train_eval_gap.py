import numpy as np
import pytest

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.train_eval_gap import TrainEvalGap


@pytest.mark.parametrize(("gap", "severity"), [(0.3, "info"), (0.6, "warning"), (4.0, "critical")])
def test_fires_by_the_later_half(script, gap, severity):
    one = script().add("train-eval-gap", "same", [0.1] * 20, floor=0.1, first=31)
    one.add("train-eval-gap", "apart", [0.0] * 10 + [gap] * 10, floor=0.1, first=31)
    (finding,) = TrainEvalGap().check(one.history)
    assert (finding.severity, [site.module for site in finding.sites]) == (severity, ["apart"])
    assert "median of the last 10 observed steps, at 10 of them above 0.25" in finding.message
    assert "1 of 2 batch normalisers" in finding.message
    assert finding.treatments[0] == "re-estimate"


def test_the_first_thirty_steps_are_left_out(script):
    one = script().add("train-eval-gap", "a", [3.0] * 30 + [0.0] * 10, floor=0.1)
    assert TrainEvalGap().check(one.history) == []


def test_a_gap_that_closes_is_no_finding(script):
    one = script().add("train-eval-gap", "a", [3.0] * 15 + [0.0] * 20, floor=0.1, first=31)
    assert TrainEvalGap().check(one.history) == []


def test_chance_fires_nothing(script):
    """Half of the steps above the threshold, at each of 30 layers."""
    generator = np.random.default_rng(2)
    one = script()
    for site in range(30):
        one.add("train-eval-gap", f"l{site}", 0.5 * generator.random(20), floor=0.1, first=31)
    answer = TrainEvalGap().check(one.history)
    assert answer == []


def test_a_short_run_is_inconclusive(script):
    answer = TrainEvalGap().check(script().add("train-eval-gap", "a", [3.0] * 34, floor=0.1).history)
    assert isinstance(answer, Inconclusive)
    assert "the gap (after step 30) was read 4 times at a layer; it needs 5" in answer.reason


def test_layers_of_one_mode_are_well(script):
    assert TrainEvalGap().check(script().add("running-lag", "frozen", [3.0] * 9, floor=0.1).history) == []
    assert TrainEvalGap().check(script().add("batch-noise", "untracked", [0.1] * 9).history) == []
