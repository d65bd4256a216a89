"""What every measure owes: a name, a unit, bounds, a card; a reading with n; nothing changed on the way."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pkgutil
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import holdfast.measures as family
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading, Table
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.live.attention import Attended
from holdfast.measures import QUANTITIES
from holdfast.measures.descent import Descent
from holdfast.measures.learning_rate_sweep import Sweep, sweep_learning_rates
from holdfast.measures.spectral_density import spectral_density
from holdfast.measures.stored_distances import OVER
from holdfast.stats.batch_statistics import BatchStatistics, Running
from holdfast.stats.features import Features
from holdfast.stats.observation import Observation, observe
from holdfast.store.memory import MemoryRun

SITE = Site("fc", "input")
SECTIONS = ("What it sees:", "Why it matters:", "When it is wrong:", "Example:", "References:")
HELPERS = {
    "activation_window",
    "attention_rows",
    "depth_slope",
    "descent",
    "direction",
    "gaussian",
    "l2_norm",
    "lanczos",
    "landscape",
    "landscape_comparison",
    "learning_rate_sweep",
    "multiplicity",
    "one_loss",
    "pairing",
    "permutation_test",
    "rank_window",
    "ratio",
    "resampling",
    "sample",
    "scale_invariance",
    "spectral_density",
    "spectrum",
    "spike_cause",
    "spike_replay",
    "stability",
    "stability_threshold",
    "stored_distances",
    "streams",
    "student",
    "two_states",
    "weights",
    "wilson",
}
"""Files of the family that are not a measure."""

# Which function of a measure's file gives its readings, where it is not named like the file.
FUNCTIONS = {"drift-amplification": "amplification"}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(seed: int) -> tuple[Features, Features, Observation]:
    """Two observations of different batches, with dead and sparse features, and one with a threshold."""
    x, y = draw(seed, 16, 6, 2), 1.3 * draw(seed + 1, 16, 6, 2) + 0.2
    x[:, 0] = y[:, 0] = 0.0
    x[:, 1], y[:, 1] = x[:, 1].relu(), y[:, 1].relu()
    return observe(x).features, observe(y).features, observe(x, threshold=1.0)


def normalised(seed: int) -> BatchStatistics:
    """A batch as a normaliser saw it, one channel of it dead."""
    x = draw(seed, 16, 6, 2)
    x[:, 0] = 0.0
    return BatchStatistics.of(x, running=Running(np.full(6, 0.3), np.ones(6), 1e-5, 0.1 / 1.9))


def norm(value: float, port: str = "grad_output") -> Reading:
    return Reading("gradient-norm", SITE.at(port=port), 1, value, "L2 norm", 64)


def line(seed: int) -> Descent:
    """Losses and gradients along a random direction."""
    values = draw(seed, 8).abs().double()
    return Descent(1.0, 2.0, tuple((values + 0.1).tolist()), tuple(values.tolist()), tuple((2 * values).tolist()), 16)


def bowl(seed: int) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]:
    """A least-squares problem of full rank."""
    pytest.importorskip("curvlinops", reason="the extra `landscape` is not installed")
    layer = nn.Linear(8, 1, bias=False, device="meta")  # nothing drawn
    layer.weight = nn.Parameter(draw(seed, 1, 8))
    return layer, nn.functional.mse_loss, (draw(seed + 1, 64, 8), draw(seed + 2, 64, 1))


def sweep(seed: int) -> Sweep:
    """Descent on a parabola of random curvature."""
    curvature = 1.0 + float(draw(seed, 1).abs())
    return sweep_learning_rates(lambda rate: (1 - curvature * rate) ** 20, 1.0, low=0.1, high=10.0, repeats=2)


def spiked(seed: int) -> list[float]:
    """A noisy loss whose 301st value, at step 3, is twelve times as large."""
    values = np.exp(0.1 * np.random.default_rng(seed).standard_normal(400))
    values[300] *= 12
    return values.tolist()


@functools.cache
def stored(seed: int) -> MemoryRun:
    """A run of 24 steps that kept a summary of one site at each."""
    run = MemoryRun()
    for step in range(1, 25):
        run.write(StepRecord(step, summaries={SITE: observe(draw(100 * seed + step, 16, 6, 2), exponent=0).summary}))
    return run


def offline(name: str, seed: int) -> Reading | None:
    """What a stored run gives at step 3."""
    return next((each for each in OVER[name](stored(seed)) if each.step == 3), None)


def readings_of(name: str, seed: int) -> list[Reading | None]:
    """Readings of a measure on random data. A new measure needs a line here, or in `tables_of`."""
    measure = function_of(name)
    x, y, seen = batch(seed)
    where = {"site": SITE, "step": 3}
    window = family.parts_of(draw(seed, 90, 6) * torch.arange(6.0))
    p = draw(seed, 4, 2, 5).sigmoid()
    attended = Attended(SITE, p, p, 5)
    drifts = [norm(abs(float(value)) + 1e-3) for value in draw(seed, 6)]
    makers: dict[str, Callable[[], Reading | None]] = {
        "parameter-drift": lambda: measure(x, y, **where, lag=1),
        "scale-shift": lambda: measure(x, y, **where, lag=1),
        "scale-shift-p95": lambda: measure(x, y, **where, lag=1),
        "shape-shift": lambda: measure(x, y, **where, lag=1),
        "path-length": lambda: measure([replace(each, lag=1) for each in drifts], **where, lag=9),
        "straightness": lambda: measure(drifts[0], drifts[1], **where),
        "observed-drift": lambda: measure(x, y, **where, lag=1),
        "sampling-drift": lambda: measure(x, y, **where, lag=1),
        "parameter-share": lambda: measure(drifts[0], drifts[1], **where),
        "drift-gain": lambda: measure(drifts[0], drifts[1], **where),
        "drift-amplification": lambda: measure(drifts, **where),
        **{each: functools.partial(offline, each, seed) for each in OVER},
        "sliced-wasserstein": lambda: family.sliced_wasserstein_shift(x, y, **where, lag=1),
        "mmd": lambda: family.mmd_shift(x, y, **where, lag=1),
        "collapsed-features": lambda: measure(x, **where),
        "signal-spread": lambda: measure(seen.channels, **where),
        "saturated-fraction": lambda: measure(seen.summary, **where, samples=16),
        "dead-units": lambda: measure(seen.channels, **where),
        "gradient-norm": lambda: measure(draw(seed, 5, 4), **where),
        "gradient-slope": lambda: measure(drifts, **where),
        "weight-norm": lambda: measure(draw(seed, 5, 4), **where),
        "update-ratio": lambda: measure(draw(seed, 5, 4), draw(seed + 1, 5, 4), **where),
        "backward-gain": lambda: measure(drifts[0], drifts[1], **where),
        "batch-noise": lambda: measure(normalised(seed), **where),
        "train-eval-gap": lambda: measure(normalised(seed), **where),
        "loss-variation": lambda: measure(line(seed), **where),
        "gradient-predictiveness": lambda: measure(line(seed), **where),
        "relative-gradient-change": lambda: measure(line(seed), **where),
        "effective-smoothness": lambda: measure(line(seed), **where),
        "sharpness": lambda: measure(*bowl(seed), **where),
        "stability-ratio": lambda: measure(drifts[0], 2.0, **where),
        "hessian-trace": lambda: measure(*bowl(seed), **where, products=6),
        "curvature-spread": lambda: measure(spectral_density(*bowl(seed)), **where),
        "gauss-newton-condition": lambda: measure(*bowl(seed), **where),
        "maximum-learning-rate": lambda: measure(sweep(seed), **where),
        "learning-rate-sensitivity": lambda: measure(sweep(seed), **where),
        "gradient-ratio": lambda: measure(draw(seed, 5, 4), draw(seed + 1, 5, 4), **where),
        "gradient-snr": lambda: measure([draw(seed + k, 5, 4) for k in range(8)], **where),
        "update-alignment": lambda: measure(draw(seed, 5, 4), draw(seed + 1, 5, 4), **where),
        "radial-gradient": lambda: measure(draw(seed, 5, 4), draw(seed + 1, 5, 4), **where),
        "rotation": lambda: measure(draw(seed, 5, 4), draw(seed + 1, 5, 4), **where),
        "effective-rate": lambda: measure(draw(seed, 5, 4), 0.1, **where),
        "spikes": lambda: measure(spiked(seed), range(-297, 103))[0].reading(SITE),
        "running-lag": lambda: measure([normalised(seed + k) for k in range(5)], **where),
        "gate-saturation": lambda: measure(seen.summary, **where, samples=16),
        "attention-saturation": lambda: measure(attended, **where),
        "attention-entropy": lambda: measure(attended, **where),
        "stream-rms": lambda: measure(draw(seed, 8, 6), **where),
        "stream-shift": lambda: measure(draw(seed, 8, 6), [draw(seed + 1, 8, 4), draw(seed + 2, 8, 6)], **where),
        "stream-share": lambda: measure([draw(seed, 8, 6), draw(seed + 1, 8, 6)], sites=[SITE, SITE], step=3)[0],
        "stream-gradient": lambda: measure([draw(seed, 4, 6), draw(seed + 1, 4, 6)], sites=[SITE] * 2, step=3, n=8)[1],
        "effective-rank": lambda: measure(window, **where),
        "participation-ratio": lambda: measure(window, **where),
        "variance-rank": lambda: measure(window, **where),
    }
    return [makers[name]()] if name in makers else []


def tables_of(name: str, seed: int) -> list[Table]:
    """Tables of a measure that gives no reading, on random data."""
    measure = function_of(name)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            parameter.copy_(draw(seed + place, *parameter.shape))
    labelled = draw(seed, 8, 5), draw(seed + 1, 8, 1)
    update = {key: 0.1 * draw(seed + 2, *value.shape) for key, value in model.named_parameters()}
    makers: dict[str, Callable[[], Table]] = {
        "attribution": lambda: measure(model, labelled[0], update, step=3).effect,
        "gradient-ics": lambda: measure(model, nn.functional.mse_loss, labelled, update, step=3),
    }
    return [makers[name]()] if name in makers else []


def module_of(name: str) -> object:
    return importlib.import_module(f"holdfast.measures.{name.replace('-', '_')}")


def function_of(name: str) -> Callable[..., Reading | None]:
    return getattr(module_of(name), FUNCTIONS.get(name, name.replace("-", "_")))


def test_every_file_of_the_family_is_a_measure_or_a_named_helper() -> None:
    files = {each.name for each in pkgutil.iter_modules(family.__path__)}
    assert files == {name.replace("-", "_") for name in QUANTITIES} | HELPERS


@pytest.mark.parametrize("name", QUANTITIES)
class TestEveryMeasure:
    def test_is_declared_under_its_file_name(self, name: str) -> None:
        quantity = module_of(name).QUANTITY
        assert isinstance(quantity, Quantity)
        assert quantity is QUANTITIES[name]
        assert quantity.name == name
        assert isinstance(quantity.unit, Unit)
        assert quantity.label
        assert quantity.bounds[0] < quantity.bounds[1]
        assert not (quantity.logarithmic and quantity.bounds[0] < 0)

    def test_is_offered_by_the_family(self, name: str) -> None:
        assert getattr(family, FUNCTIONS.get(name, name.replace("-", "_"))) is function_of(name)

    def test_has_a_card_with_a_formula(self, name: str) -> None:
        card = inspect.getdoc(module_of(name)) or ""
        places = [card.find(f"\n{section}\n") for section in SECTIONS]
        assert -1 not in places, dict(zip(SECTIONS, places, strict=True))
        assert places == sorted(places)
        formula = card[: places[0]].splitlines()[1:]
        assert any(line.startswith("    ") for line in formula)
        assert ">>>" in card[places[3] : places[4]]

    def test_function_is_documented(self, name: str) -> None:
        text = inspect.getdoc(function_of(name)) or ""
        assert "Args:" in text
        assert "Returns:" in text

    def test_tables_keep_to_what_is_declared(self, name: str) -> None:
        tables = tables_of(name, 0)
        assert bool(tables) != bool(readings_of(name, 0))
        for table in tables:
            assert (table.measure, table.unit, table.step) == (name, QUANTITIES[name].unit, 3)
            assert table.n > 0
            assert len(set(table.rows)) == len(table.rows) == len(table.values)
            assert all(len(row) == len(set(table.columns)) for row in table.values)
            assert all(type(value) is float for row in table.values for value in row)

    def test_readings_keep_to_what_is_declared(self, name: str) -> None:
        quantity = QUANTITIES[name]
        low, high = quantity.bounds
        # A spectrum or a series of 400 steps takes a quarter of a second each time.
        dear = quantity.cost == "many forwards and backwards" or name == "spikes"
        for seed in range(5 if dear else 20):
            for reading in readings_of(name, seed):
                assert reading is not None
                assert (reading.measure, reading.unit) == (name, quantity.unit)
                assert type(reading.value) is float
                assert type(reading.n) is int
                assert reading.n > 0
                assert (reading.step, reading.site) == (3, SITE)
                assert low <= reading.value <= high
                if reading.interval is not None:
                    below, above = reading.interval
                    assert type(below) is type(above) is float
                    assert low <= below <= reading.value <= above <= high
                if reading.noise_floor is not None:
                    assert type(reading.noise_floor) is float
                    assert low <= reading.noise_floor <= high
                assert math.isfinite(reading.as_dict()["value"])

    def test_random_states_stay_untouched_and_readings_repeat(self, name: str) -> None:
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        with torch.random.fork_rng():  # the network of `tables_of` draws its first weights
            first = readings_of(name, 5), str(tables_of(name, 5))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.random.get_state()[1].tolist() == before[2]
        torch.manual_seed(99)
        random.seed(99)
        assert (readings_of(name, 5), str(tables_of(name, 5))) == first


@pytest.mark.parametrize("name", ["parameter-drift", "observed-drift", "scale-shift", "shape-shift"])
def test_the_seed_is_private_and_moves_the_floor_only(name: str) -> None:
    x, y = (observe(draw(seed, 16, 6, 1)).features for seed in (0, 1))
    a, b = (function_of(name)(x, y, site=SITE, step=1, lag=1, seed=seed) for seed in (0, 1))
    assert a.value == b.value
    assert a.noise_floor != b.noise_floor
    assert a.noise_floor == pytest.approx(b.noise_floor, rel=0.5)


@pytest.mark.parametrize("name", ["parameter-drift", "observed-drift", "scale-shift", "shape-shift", "sampling-drift"])
def test_inputs_are_read_and_not_written_or_tracked(name: str) -> None:
    x, y, _ = batch(0)
    tracked = Features(x.values.clone().requires_grad_(), x.sd, x.mean, x.rms)
    copies = [each.clone() for each in (x.values, x.sd, x.mean, y.values, y.sd, y.mean)]
    measure = function_of(name)
    assert measure(tracked, y, site=SITE, step=1, lag=1) == measure(x, y, site=SITE, step=1, lag=1)
    assert tracked.values.grad is None
    for now, then in zip((x.values, x.sd, x.mean, y.values, y.sd, y.mean), copies, strict=True):
        assert torch.equal(now, then)
