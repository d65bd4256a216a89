import json
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from holdfast.core.event import Event
from holdfast.core.record import StepRecord
from holdfast.diagnosis.diagnose import RULES, diagnose
from holdfast.store.memory import MemoryRun

NAMES = [f"l{k}" for k in range(8)]


def _healthy(script, steps=20):
    one = script().layers(*NAMES, not_seen=("scores in fused attention",))
    # The loss is kept at every step, the other figures at some.
    one.series("loss", [1.0 / step for step in range(1, 5 * steps + 1)])
    one.series("gradient-norm", [1.0] * steps)
    one.gradients(dict.fromkeys(NAMES, 1.0), steps=steps)
    for name in NAMES:
        one.drift(name, [0.01] * steps, floor=0.005)
        one.signal(name, [0.0] * 4, [1.0] * 4, steps=steps)
        one.add("update-ratio", name, [1e-3] * steps, port="update", leaf="weight")
    return one


def test_a_healthy_run_says_that_shift_is_not_the_problem(script):
    diagnosis = diagnose(_healthy(script).history)
    assert list(diagnosis) == []
    assert diagnosis.inconclusive == ()
    assert diagnosis.verdict == (
        "No finding: no rule fired, and internal covariate shift is not what holds this run back (largest drift 0.01 "
        "reference SD per step at 'l0', median of 20 observed steps, n = 64)"
    )


def test_large_shift_is_the_verdict(script):
    one = _healthy(script)
    for k, name in enumerate(NAMES):
        one.drift(name, [0.01 * 3.0**k] * 40, first=21)
    diagnosis = diagnose(one.history)
    assert diagnosis.findings[0].rule == "shifting-input"
    assert {finding.rule for finding in diagnosis} == {"shifting-input", "drift-amplification"}
    assert diagnosis.verdict.startswith("Internal covariate shift is large here: ")
    assert "at 'l7'" in diagnosis.verdict


def test_another_cause_is_named_and_shift_is_acquitted(script):
    one = _healthy(script).add("saturated-fraction", "act", [0.9] * 20)
    diagnosis = diagnose(one.history)
    assert diagnosis.verdict.startswith(
        "Saturation of units is what holds this run back; internal covariate shift is not (largest drift 0.01 "
    )


def test_a_dead_signal_comes_before_shift_and_forbids_its_figures(script):
    one = script().layers(*NAMES).gradients({name: 10.0 ** (k - 7) for k, name in enumerate(NAMES)}, steps=20)
    for k, name in enumerate(NAMES):
        one.signal(name, [0.5], [0.5 * 10.0**-k], steps=20)
        one.drift(name, [1e-5 * 10.0**k] * 20, floor=1e-6)
    diagnosis = diagnose(one.history)
    assert diagnosis.findings[0].rule == "collapsed-signal"
    assert "shifting-input" in {each.rule for each in diagnosis.inconclusive}
    assert diagnosis.verdict.startswith("A dead signal (beside it: ")
    assert "Internal covariate shift is" not in diagnosis.verdict


def test_ranks_by_severity_then_strength(script):
    one = (
        _healthy(script)
        .add("saturated-fraction", "act", [0.3] * 20)
        .add("dead-units", "relu", [0.9] * 20, port="output", n=640)
    )
    one.add("update-ratio", "extra", [0.15] * 20, port="update", leaf="weight")
    one.layers(*NAMES, "extra")
    diagnosis = diagnose(one.history)
    assert [finding.rule for finding in diagnosis] == ["dead-units", "update-ratio", "saturated-units"]
    assert [finding.rank for finding in diagnosis] == [1, 2, 3]


def test_an_empty_run_is_inconclusive_throughout():
    diagnosis = diagnose(MemoryRun("empty"))
    assert len(diagnosis.inconclusive) == len(RULES)
    assert diagnosis.verdict == "inconclusive: nothing was observed; watch the run for at least 5 observed steps"


def test_a_short_run_is_inconclusive_and_says_what_it_needs(script):
    diagnosis = diagnose(_healthy(script, steps=2).history)
    assert diagnosis.verdict.startswith("inconclusive: parameter drift was read at 2 steps; it needs 5 observed steps")


def test_a_remark_about_the_model_is_no_cause_and_no_silence(described):
    run = described(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.randn(8, 4))
    for step in range(1, 4):
        run.write(StepRecord(step, values={"loss": 1.0, "gradient-norm": 1.0}))
    diagnosis = diagnose(run)
    assert [(each.rule, each.severity) for each in diagnosis] == [("redundant-bias", "info")]
    assert diagnosis.verdict.startswith("inconclusive: ")
    assert diagnosis.verdict.endswith("; the rules that could decide left 1 remark but no warning")


def test_a_rule_that_fails_costs_no_other(script):
    @dataclass(frozen=True)
    class Broken:
        name: str = "broken"
        subject: str = "what is broken"
        treatments: tuple[str, ...] = ()
        static: bool = False

        def check(self, history):
            raise ZeroDivisionError("by nought")

    diagnosis = diagnose(_healthy(script).history, rules=(Broken(), *RULES))
    assert [(each.rule, each.reason) for each in diagnosis.inconclusive] == [
        ("broken", "the rule failed (ZeroDivisionError: by nought)")
    ]


def test_says_what_was_not_seen(script):
    one = _healthy(script).event(Event(7, "monitor-error", "the hook of 'l3' failed and was removed"))
    assert diagnose(one.history).not_seen == (
        "scores in fused attention",
        "step 7: the hook of 'l3' failed and was removed",
    )
    bare = script().drift("a", [0.1] * 6)
    assert "structure was not recorded" in diagnose(bare.history).not_seen[0]


def test_json_holds_no_nan(script):
    one = _healthy(script).series("loss", [math.nan] * 20)
    text = json.dumps(diagnose(one.history).as_dict(), allow_nan=False)
    assert json.loads(text)["findings"][0]["rule"] == "nonfinite"


@pytest.mark.parametrize("severity", ["info"])
def test_remarks_alone_are_no_finding_in_the_verdict(script, severity):
    one = _healthy(script).drift("extra", [0.07] * 20)
    diagnosis = diagnose(one.history)
    assert [finding.severity for finding in diagnosis] == [severity]
    assert diagnosis.verdict.startswith("No finding: 1 remark but no warning, and internal covariate shift is not")


def test_a_signal_that_arrives_at_a_thousandth_comes_before_the_shift_counted_in_it(script):
    one = _healthy(script)
    for k in range(12):
        one.signal(f"m{k}", [0.0] * 4, [0.4**k] * 4, steps=20).drift(f"m{k}", [1e-4 * 3.0**k] * 20, floor=1e-6)
    one.layers(*(f"m{k}" for k in range(12)))
    diagnosis = diagnose(one.history)
    assert [finding.rule for finding in diagnosis][:2] == ["poor-init", "shifting-input"]
    assert diagnosis.verdict.startswith("The initialisation is what holds this run back")
    assert diagnosis.verdict.endswith("internal covariate shift comes after it (shifting-input, critical)")
