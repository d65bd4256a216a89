import math

import pytest

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.collapsed_signal import CollapsedSignal


def test_fires_where_the_samples_cannot_be_told_apart(script):
    one = script()
    for k in range(8):
        one.signal(f"l{k}", [0.5] * 4, [0.5 * 10.0**-k] * 4)
    (finding,) = CollapsedSignal().check(one.history)
    assert finding.severity == "critical"
    assert [site.module for site in finding.sites] == ["l4", "l5", "l6", "l7"]
    assert "differ by 1.0e-07 of the signal's RMS" in finding.message
    assert "0.71 at 'l0'" in finding.message
    assert "at 4 of 8 inputs seen, from 'l4' on" in finding.message
    assert finding.evidence[0].site.module == "l7"


def test_one_site_is_a_warning(script):
    one = script().signal("a", [0.0], [1.0]).signal("b", [1.0], [1e-4])
    (finding,) = CollapsedSignal().check(one.history)
    assert finding.severity == "warning"


def test_collapsed_features_are_enough(script):
    one = script().add("collapsed-features", "a", [0.1] * 5).add("collapsed-features", "b", [0.8] * 5)
    (finding,) = CollapsedSignal().check(one.history)
    assert [site.module for site in finding.sites] == ["b"]
    assert "80 %" in finding.message


@pytest.mark.parametrize(("mean", "sd"), [([0.0], [1e-6]), ([5.0], [0.05]), ([0.0, 0.0], [0.0, 1.0])])
def test_a_small_or_offset_signal_is_not_collapsed(script, mean, sd):
    assert CollapsedSignal().check(script().signal("a", mean, sd).history) == []


def test_a_signal_that_was_alive_at_first_was_trained_to_death(script):
    (dead,) = CollapsedSignal().check(script().add("signal-spread", "a", [1e-6] * 9, first=1).history)
    assert dead.treatments[0] == "reinitialise"
    assert "from the start" not in dead.message
    (killed,) = CollapsedSignal().check(script().add("signal-spread", "a", [0.5] + [1e-6] * 8, first=1).history)
    assert killed.treatments[:2] == ("scale-rate", "warm-up")
    assert "though not from the start: 0.5 at step 1;" in killed.message


def test_passing_collapse_is_not_collapse(script):
    assert CollapsedSignal().check(script().add("signal-spread", "a", [1e-6] * 2 + [0.5] * 8).history) == []


def test_without_figures_it_is_inconclusive(script):
    for one in (script().drift("a", [0.1] * 5), script().signal("a", [1.0], [1e-6], n=4)):
        answer = CollapsedSignal().check(one.history)
        assert isinstance(answer, Inconclusive)
        assert "8 samples" in answer.reason


def test_nan_is_no_reading(script):
    assert isinstance(
        CollapsedSignal().check(script().add("collapsed-features", "a", [math.nan]).history), Inconclusive
    )
