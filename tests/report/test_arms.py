from __future__ import annotations

import math
from dataclasses import replace

from holdfast.report.arms import arm_rows


def test_rows_are_means_over_the_seeds(proof):
    untreated, treated, rival = arm_rows(proof)
    assert (untreated.name, treated.name, rival.name) == ("untreated", "treated", "learning rate × 3")
    assert math.isclose(treated.outcome, 0.905)
    assert (treated.loss, treated.seconds, treated.diverged) == (1.0, 0.002, 0)
    assert (untreated.shift, treated.shift, rival.shift) == (*proof.shift, None)


def test_an_arm_that_diverged_has_no_mean(proof):
    broken = replace(proof.arms[0].trials[0], eval_loss=math.nan)
    arms = (replace(proof.arms[0], trials=(broken, proof.arms[0].trials[1])), *proof.arms[1:])
    row = arm_rows(replace(proof, arms=arms))[0]
    assert row.diverged == 1
    assert math.isnan(row.outcome)
    assert math.isnan(row.loss)
