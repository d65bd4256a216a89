import math
import re

import pytest

from holdfast.core.finding import Inconclusive
from holdfast.diagnosis.poor_init import PoorInit

NAMES = [f"l{k}" for k in range(9)]


def _run(script, forward=1.0, backward=1.0, names=NAMES, first=1):
    one = script().layers(*names)
    for k, name in enumerate(names):
        one.signal(name, [0.0] * 4, [forward**k] * 4)
        one.add("gradient-norm", name, [backward ** (len(names) - 1 - k)] * 3, port="grad_output", first=first)
    return one


@pytest.mark.parametrize(
    ("forward", "backward", "severity", "text"),
    [
        (
            0.6,
            1.0,
            "info",
            "the signal shrinks ×0.6 per layer (median slope: ×0.017 over 8 layers; measured 1 at 'l0', 0.017 at 'l8')",
        ),
        (0.5, 1.0, "warning", "the signal shrinks ×0.5 per layer"),
        (0.2, 1.0, "critical", "the signal shrinks"),
        (2.0, 1.0, "warning", "the signal grows ×2 per layer"),
        (
            1.0,
            0.5,
            "warning",
            "the gradient shrinks ×0.5 per layer (median slope: ×0.0039 over 8 layers; measured 1 at 'l8'",
        ),
        (1.0, 4.0, "critical", "the gradient grows ×4 per layer"),
    ],
)
def test_fires_by_the_factor_and_the_total(script, forward, backward, severity, text):
    (finding,) = PoorInit().check(_run(script, forward, backward).history)
    assert finding.severity == severity
    assert finding.message.startswith("at step 1 ")
    assert text in finding.message
    assert "9 layers" in finding.message


def test_the_slope_and_the_total_agree_where_one_layer_is_odd(script):
    """The ends need not lie on the trend; the message says which figure is which."""
    one = script().layers(*NAMES)
    for k, name in enumerate(NAMES):
        one.signal(name, [0.0] * 4, [0.5**k * (0.01 if k == 8 else 1.0)] * 4)
    (finding,) = PoorInit().check(one.history)
    told = re.search(r"×(\S+) per layer \(median slope: ×(\S+) over (\d+) layers; measured (\S+) at", finding.message)
    factor, total, span, start = map(float, told.groups())
    assert total == pytest.approx(factor**span, rel=0.05)
    assert start == 1.0
    assert "3.9e-05 at 'l8'" in finding.message


def test_both_directions_are_one_finding(script):
    (finding,) = PoorInit().check(_run(script, 0.3, 0.3).history)
    assert "the signal shrinks" in finding.message
    assert "and the gradient shrinks" in finding.message
    assert {reading.measure for reading in finding.evidence} >= {"signal-sd", "gradient-norm", "gradient-slope"}


@pytest.mark.parametrize("factor", [0.75, 1.0, 1.3])
def test_a_good_start_is_well(script, factor):
    assert PoorInit().check(_run(script, factor, factor).history) == []


def test_only_the_first_step_is_read(script):
    one = _run(script)
    for k, name in enumerate(NAMES):
        one.add("gradient-norm", name, [0.1 ** (8 - k)] * 20, port="grad_output", first=10)
    assert PoorInit().check(one.history) == []


def test_a_late_first_step_is_inconclusive(script):
    one = script().layers(*NAMES)
    for name in NAMES:
        one.add("gradient-norm", name, [1.0] * 3, port="grad_output", first=300)
    answer = PoorInit().check(one.history)
    assert isinstance(answer, Inconclusive)
    assert "first observed step is 300" in answer.reason


@pytest.mark.parametrize("layers", [1, 2])
def test_too_few_layers_are_inconclusive(script, layers):
    answer = PoorInit().check(_run(script, 0.01, names=NAMES[:layers]).history)
    assert isinstance(answer, Inconclusive)
    assert "a trend needs 3" in answer.reason


def test_nan_is_no_figure(script):
    assert isinstance(PoorInit().check(_run(script, math.nan, math.nan).history), Inconclusive)
