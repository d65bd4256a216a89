import math

import pytest

from holdfast.core.event import Event
from holdfast.core.finding import Inconclusive
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.diagnosis.nonfinite import NonFinite
from holdfast.stats.counts import Counts
from holdfast.stats.extremes import Extremes
from holdfast.stats.moments import Moments
from holdfast.stats.sketch import Sketch
from holdfast.stats.summary import Summary
from holdfast.store.memory import MemoryRun


def _summary(nan):
    return Summary(
        Moments(64, 0.0, 64.0, 0.0, 192.0), Extremes.empty(), Counts(64 + nan, 0, nan, 0, 0, 0), Sketch.empty()
    )


def test_names_the_first_operation_that_broke(script):
    data = {"where": "head", "operation": "log", "kind": "operation", "detail": "the log of a negative number."}
    one = script().series("loss", [1.0, math.nan])
    one.event(Event(2, "nonfinite", "the loss is not finite.", data=data))
    one.event(Event(3, "nonfinite", "the loss is not finite.", data=data))
    (finding,) = NonFinite().check(one.history)
    assert finding.severity == "critical"
    assert finding.message.startswith("step 2: the loss is not finite; the log of a negative number; 2 such steps")
    assert finding.sites == (Site("head", "output"),)
    assert "scale-input" not in finding.treatments


def test_a_broken_input_is_answered_at_the_input(script):
    one = script().event(Event(1, "nonfinite", "NaN in the batch", data={"where": "", "kind": "input"}))
    (finding,) = NonFinite().check(one.history)
    assert finding.treatments == ("scale-input",)


@pytest.mark.parametrize(
    ("kinds", "losses", "severity"),
    [
        (["gradient"], [1.0, 0.9, 0.8], "warning"),
        (["gradient", "gradient"], [1.0, 0.9, 0.8], "warning"),
        (["gradient", "parameter"], [1.0, 0.9, 0.8], "critical"),
        (["gradient"], [1.0, 0.9, math.nan], "critical"),
        (["operation"], [1.0, 0.9, 0.8], "critical"),
        ([None], [1.0, 0.9, 0.8], "critical"),
    ],
)
def test_gradients_alone_are_a_warning_as_the_card_says(script, kinds, losses, severity):
    one = script().series("loss", losses)
    for step, kind in enumerate(kinds, 1):
        data = {"where": "head", "operation": "backward", "detail": "the gradient is not."}
        one.event(Event(step, "nonfinite", "not finite", data=data if kind is None else data | {"kind": kind}))
    (finding,) = NonFinite().check(one.history)
    assert finding.severity == severity


def test_a_nan_loss_without_an_event(script):
    (finding,) = NonFinite().check(script().series("loss", [1.0, math.nan, math.inf]).history)
    assert "not finite at 2 of 3 steps, first at step 2" in finding.message


@pytest.mark.parametrize(("port", "severity"), [("output", "critical"), ("grad_output", "warning")])
def test_counts_of_a_site(port, severity):
    run = MemoryRun()
    site = Site("fc", port)
    run.write(StepRecord(1, summaries={site: _summary(0)}))
    run.write(StepRecord(2, summaries={site: _summary(3)}))
    (finding,) = NonFinite().check(run)
    assert finding.severity == severity
    assert "3 of 67 values" in finding.message
    assert "step 2" in finding.message
    assert finding.evidence[0].value == 3


def test_a_finite_run_is_well(script):
    assert NonFinite().check(script().series("loss", [1.0, 0.5]).history) == []


def test_a_mask_that_reaches_no_loss_is_well():
    run = MemoryRun()
    run.write(
        StepRecord(1, values={"loss": 1.0, "gradient-norm": 1.0}, summaries={Site("mask", "output"): _summary(9)})
    )
    assert NonFinite().check(run) == []


def test_nothing_recorded_is_inconclusive(script):
    assert isinstance(NonFinite().check(script().drift("a", [0.1]).history), Inconclusive)
