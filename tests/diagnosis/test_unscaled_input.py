import numpy as np
import pytest

from holdfast.core.finding import Inconclusive
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.structure import ModuleNode, Structure
from holdfast.diagnosis.unscaled_input import UnscaledInput
from holdfast.stats.channels import ChannelMoments
from holdfast.store.memory import MemoryRun


def _run(values, module="fc", kind="Linear", bases=(), leaf=""):
    """A history that saw these values, `(samples, channels)`, at the model's input."""
    values = np.asarray(values, float)
    moments = ChannelMoments(
        np.full(values.shape[1], float(len(values))),
        values.mean(0),
        values.var(0) * len(values),
        (values == 0).sum(0).astype(float),
    )
    run = MemoryRun()
    node = ModuleNode(module, kind, (kind, *bases), True)
    run.describe(Structure("net", "Net", (node,), (module,), (("", module),)))
    run.write(StepRecord(1, channels={Site(module, "input", leaf=leaf): moments}))
    return run


def _pixels(generator, n=200):
    """Like digits: many dark, the border never or seldom lit."""
    lit = generator.random((n, 64)) < np.linspace(0, 0.8, 64)
    return lit * generator.random((n, 64))


def _border(generator, n=200):
    """Like photographs of clothes: the outer pixels are lit in a few images, and faintly."""
    pixels = _pixels(generator, n)
    pixels[:, :20] = 0.0
    pixels[:3, :20] = 1e-3 * generator.random((3, 20))
    return pixels


GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("values", "severity", "text"),
    [
        (255 * _pixels(GENERATOR), "warning", "RMS of"),
        (GENERATOR.normal(0, 1e-4, (100, 8)), "warning", "RMS of"),
        (GENERATOR.normal(5, 0.1, (100, 8)), "warning", "8 of 8 channels"),
        (
            GENERATOR.normal(0, 1, (100, 8)) * [1e-3, 1e-3, 1e-3, 5, 1e-3, 1e-3, 1e-3, 1],
            "warning",
            "scales: channel 3 ",
        ),
        (GENERATOR.normal(0, 1, (100, 2)) * [5e-3, 1], "info", "a ratio of"),
        (GENERATOR.normal(0, 1, (100, 9)) * [5, *[1e-3] * 8], "warning", "the median of 9 channels (channel "),
        (GENERATOR.normal(0, 1, (100, 6)) * [2e-3, 0.02, 0.01, 5, 0.05, 8], "info", "different scales: channel 5"),
    ],
    ids=[
        "pixels to 255",
        "tiny",
        "offset",
        "scales apart by 1,000",
        "two scales apart by 200",
        "one feature × 5,000 of a small table",
        "a raw table",
    ],
)
def test_fires(values, severity, text):
    (finding,) = UnscaledInput().check(_run(values))
    assert finding.severity == severity
    assert text in finding.message
    assert "n = " in finding.message
    assert finding.treatments[0] == "scale-input"


def test_one_feature_times_5000_has_a_size_and_a_scale():
    size, scale = UnscaledInput().check(_run(GENERATOR.normal(0, 1, (100, 9)) * [1, 1, 1, 1, 5000, 1, 1, 1, 1]))
    assert "RMS of" in size.message
    assert scale.severity == "warning"
    assert "different scales: channel 4 has an SD of" in scale.message


@pytest.mark.parametrize(
    "values",
    [
        _pixels(GENERATOR),
        GENERATOR.normal(0, 1, (100, 8)),
        np.hstack([GENERATOR.normal(0, 1, (100, 4)), np.zeros((100, 4))]),
        np.hstack([GENERATOR.normal(0, 1, (100, 4)), 3 * np.ones((100, 1))]),
        np.eye(10)[GENERATOR.integers(0, 10, 100)],
        np.hstack([GENERATOR.normal(0, 1, (200, 3)), np.r_[0.004, np.zeros(199)][:, None]]),
        GENERATOR.normal(0, 1, (100, 3)) * [1e-3, 1, 1],
        _border(GENERATOR),
        _border(GENERATOR) - _border(GENERATOR).mean(0),
        (_border(GENERATOR) - 0.2860) / 0.3530,
    ],
    ids=[
        "pixels to 1",
        "standardised",
        "zero features",
        "constant feature",
        "one-hot",
        "a seldom lit pixel",
        "a narrow feature",
        "border",
        "border, centred",
        "border, standardised as a whole",
    ],
)
def test_does_not_fire(values):
    assert UnscaledInput().check(_run(values)) == []


@pytest.mark.parametrize("kind", ["BatchNorm2d", "Embedding"])
def test_a_normaliser_or_an_embedding_does_not_mind(kind):
    assert UnscaledInput().check(_run(255 * _pixels(GENERATOR), kind=kind)) == []


@pytest.mark.parametrize(("leaf", "fires"), [("0", True), ("0.0", True), ("1", False), ("1.1", False), ("1.hx", False)])
def test_the_state_that_a_recurrent_layer_is_handed_is_not_data(leaf, fires):
    found = UnscaledInput().check(_run(255 * _pixels(GENERATOR), kind="LSTM", bases=("RNNBase",), leaf=leaf))
    assert bool(found) == fires


def test_without_structure_the_first_input_is_the_models(script):
    one = script().signal("first", [100.0], [60.0]).signal("second", [1000.0], [1.0])
    (finding,) = UnscaledInput().check(one.history)
    assert finding.sites[0].module == "first"


def test_steps_are_merged_and_too_few_values_are_inconclusive(script):
    answer = UnscaledInput().check(script().signal("a", [100.0], [60.0], n=7, steps=4).history)
    assert isinstance(answer, Inconclusive)
    assert "28 values a channel; it needs 30" in answer.reason
    assert len(UnscaledInput().check(script().signal("a", [100.0], [60.0], n=8, steps=4).history)) == 1


def test_nan_channels_are_no_figures():
    moments = ChannelMoments(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2))
    run = _run(np.zeros((100, 2)))
    assert UnscaledInput().check(run) == []
    empty = MemoryRun()
    empty.write(StepRecord(1, channels={Site("fc", "input"): moments}))
    assert isinstance(UnscaledInput().check(empty), Inconclusive)
