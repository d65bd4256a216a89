import pytest

from holdfast.diagnosis.gradient_flow import few_layers, gradient_flow, update_spread

NAMES = [f"l{k}" for k in range(5)]


def _flow(script, signal, weights):
    """Norms that change by a factor per layer towards the output: of the signal, and of ‖G‖·‖W‖."""
    one = script().layers(*NAMES)
    for k, name in enumerate(NAMES):
        one.add("gradient-norm", name, [signal**k] * 6, port="grad_output")
        one.add("gradient-norm", name, [weights**k / 2] * 6, port="weight_grad", leaf="weight")
        one.add("weight-norm", name, [2.0] * 6, port="weight", leaf="weight")
    return gradient_flow(one.history, "net")


@pytest.mark.parametrize(
    ("signal", "weights", "ratio"),
    [(10.0, 10.0, 1e-4), (100.0, 10.0, 1e-4), (10.0, 100.0, 1e-4), (10.0, 0.1, 1.0), (0.1, 0.01, 1e4)],
)
def test_the_ratio_is_what_both_profiles_say(script, signal, weights, ratio):
    flow = _flow(script, signal, weights)
    assert flow.ratio() == pytest.approx(ratio)
    assert flow.steps == 6


def test_steps_agree_or_do_not(script):
    flow = _flow(script, 10.0, 10.0)
    assert flow.agreement(1, 1.0) == pytest.approx(1 / 64)
    assert flow.agreement(-1, 1.0) == 1


def test_one_profile_is_enough_and_none_says_what_is_missing(script):
    one = script().layers(*NAMES)
    for k, name in enumerate(NAMES):
        one.add("gradient-norm", name, [10.0**k] * 6, port="grad_output")
    assert gradient_flow(one.history, "net").ratio() == pytest.approx(1e-4)
    empty = gradient_flow(script().history, "net")
    assert (empty.profiles, empty.ratio()) == ([], 1.0)
    assert "no gradient norm was read" in few_layers([empty])


def test_update_spread_compares_the_ends(script):
    one = script().layers(*NAMES).gradients(dict.fromkeys(NAMES, 1.0))
    for k, name in enumerate(NAMES):
        one.add("update-ratio", name, [10.0**k] * 6, port="update", leaf="weight")
    history = one.history
    assert update_spread(history, gradient_flow(history, "net")) == pytest.approx(1e-4)
