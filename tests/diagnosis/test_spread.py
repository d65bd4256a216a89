import math

from holdfast.diagnosis.spread import DEAD_SPREAD, dead_modules, spreads


def test_readings_come_before_merged_channels(script):
    history = script().signal("a", [1.0], [1.0]).add("signal-spread", "a", [1e-6] * 3).history
    assert [reading.value for readings in spreads(history, "net").values() for reading in readings] == [1e-6] * 3
    assert dead_modules(history, "net") == {"a": 1e-6}


def test_dead_modules_are_below_the_threshold_or_mostly_collapsed(script):
    history = (
        script()
        .signal("well", [0.5], [0.5])
        .signal("dead", [0.5], [0.4 * DEAD_SPREAD])
        .signal("gone", [0.5], [0.5])
        .add("collapsed-features", "well", [0.4] * 5)
        .add("collapsed-features", "gone", [0.9] * 5)
        .history
    )
    dead = dead_modules(history, "net")
    assert list(dead) == ["dead", "gone"]
    assert math.isnan(dead["gone"])


def test_dead_rectifiers_beside_living_ones_are_no_dead_signal(script):
    one = script().add("collapsed-features", "after_relu", [0.6] * 6)
    one.signal("after_relu", [0.0, 0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.5, 0.5])
    for moments in (next(iter(each.values())) for each in one.channels.values()):
        moments.zeros[:3] = moments.count[:3]
    assert dead_modules(one.history, "net") == {}


def test_what_only_dead_modules_feed_is_dead_up_to_a_normaliser(script):
    """A merged spread holds the drift between steps and looks alive."""
    one = script().layers("a", "b", "c", "d")
    for module, sd in (("a", 1.0), ("b", 1e-6), ("c", 1.0), ("d", 1.0)):
        one.signal(module, [1.0], [sd])
    assert list(dead_modules(one.history, "net")) == ["b", "c", "d"]
    normalised = script().layers("a", "b", "c", "d", kind="BatchNorm1d")
    for module, sd in (("a", 1.0), ("b", 1e-6), ("c", 1.0), ("d", 1.0)):
        normalised.signal(module, [1.0], [sd])
    assert list(dead_modules(normalised.history, "net")) == ["b"]


def test_a_spread_of_every_step_needs_no_inference(script):
    one = script().layers("a", "b").add("signal-spread", "a", [1e-6] * 5).add("signal-spread", "b", [0.5] * 5)
    assert list(dead_modules(one.history, "net")) == ["a"]
