"""A real browser, and a run with its diagnosis."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from holdfast.clinic.arms import Trial
from holdfast.clinic.cure import Cure
from holdfast.clinic.prescribe import Choice, Prescription
from holdfast.clinic.proof import TREATED, UNTREATED, Arm, Proof, Shift, compare
from holdfast.core.finding import Diagnosis, Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.treatment import Plan, Receipt
from holdfast.store.memory import MemoryRun

CHROMIUM = Path("/usr/bin/chromium")

# The runs of the figures' tests serve here too; folders of tests are no packages, so the file is loaded by its path.
_spec = importlib.util.spec_from_file_location("figure_runs", Path(__file__).parents[1] / "figures" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_figure_runs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_figure_runs)

NASTY: str = _figure_runs.NASTY


@dataclass
class Opened:
    """A page in the browser, with what it asked for and what it complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; the tests that need it are skipped where there is none, except in CI."""
    if not CHROMIUM.exists():
        reason = f"no browser at {CHROMIUM}; install it with: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Opens a file: `open_page(path, color_scheme="dark", viewport=…)`; waits until its figures are drawn."""
    contexts = []

    def opener(path: Path, **options: Any) -> Opened:
        context = browser.new_context(**options)
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.on(
            "dialog", lambda dialog: (opened.complaints.append(f"dialog {dialog.message}"), dialog.dismiss())
        )
        opened.page.on(
            "console",
            lambda message: opened.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        opened.page.goto(path.as_uri())
        opened.page.wait_for_function(
            "[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg.main-svg'))"
        )
        return opened

    yield opener
    for context in contexts:
        context.close()


def _diagnose(history: History) -> Diagnosis:
    """Findings made by hand from a run's readings."""
    readings = sorted(history.readings("parameter-drift", lag=1), key=lambda each: (-each.step, -each.value))[:10]
    sites = tuple(dict.fromkeys(reading.site for reading in readings))
    findings = (
        Finding(
            "shifting-input", "critical", sites, "The <b>inputs</b> move.", tuple(readings), ("insert-norm",), 3.0, 1
        ),
        Finding(
            "saturated-units",
            "warning",
            (*sites[:1], sites[0].at(phase="probe")),
            "many inputs lie in the flat part.",
            (),
            ("reinitialise",),
            2.0,
            2,
        ),
        Finding("unscaled-input", "info", sites[-1:], "The input has mean 4.9.", (), ("scale-input",), 1.1, 3),
    )
    return Diagnosis(
        history.name,
        history.steps,
        "Internal covariate shift holds this run back.",
        findings,
        (Inconclusive("dead-units", "no rectifier was observed"),),
        ("sigmoid in layers.3 runs outside every module",),
    )


@pytest.fixture(scope="session")
def run() -> MemoryRun:
    """400 steps of twenty layers."""
    return _figure_runs.make_run()


@pytest.fixture(scope="session")
def run_of() -> Callable[..., MemoryRun]:
    """Makes runs: `run_of(modules, steps=…, every=…)`."""
    return _figure_runs.make_run


@pytest.fixture(scope="session")
def nasty_run() -> MemoryRun:
    """A layer whose name is an attack on the page."""
    return _figure_runs.make_run([(NASTY, "Linear"), ("a" * 120, "Sigmoid"), ("$x^2$", "Linear")], steps=24)


def _arm(name: str, level: float, accuracy: float) -> Arm:
    trials = (
        Trial(tuple(level / step for step in range(1, 31)), level, accuracy + wobble, 0.002) for wobble in (0.0, 0.01)
    )
    return Arm(name, tuple(trials))


@pytest.fixture(scope="session")
def proof() -> Proof:
    """That a normaliser helps, over two seeds."""
    arms = (_arm(UNTREATED, 2.0, 0.5), _arm(TREATED, 1.0, 0.9), _arm("learning rate × 3", 2.2, 0.45))
    comparisons = tuple(
        compare("accuracy", arms[1], other, higher_is_better=True, alpha=0.05) for other in (arms[0], arms[2])
    )
    shift = (Shift(UNTREATED, 0.25, 0.75, "<i>", 40, collapsed=3), Shift(TREATED, 0.0, 0.0625, "fc", 50))
    sentence = "accuracy, treated − untreated: +0.4 <b>"
    return Proof("insert-norm", "helps", sentence, "accuracy", comparisons, arms, 2, 30, shift)


@pytest.fixture(scope="session")
def cure_of() -> Callable[..., Cure]:
    """Makes cures: `cure_of(diagnosis, proofs, kept=True)`."""

    def make(diagnosis: Diagnosis, proofs: tuple[Proof, ...], *, kept: bool) -> Cure:
        plan = Plan("insert-norm", "- fc: Linear\n+ fc: Sequential<br>", "model.fc = '<script>'")
        choices = (
            Choice("shifting-input", 1, "insert-norm", "chosen", "it answers <b>", plan),
            Choice("shifting-input", 1, "warm-up", "recipe", "lines for your script"),
        )
        receipt = Receipt("insert-norm", ("fc: Linear → Sequential",), lambda: None, 1e-7, 0.5, {"fc.weight": "x"})
        prescription = Prescription(plan, choices) if proofs else Prescription(Plan.nothing(), ())
        return Cure(diagnosis, prescription, proofs, receipt if kept else None)

    return make


@pytest.fixture(scope="session")
def diagnose() -> Callable[[History], Diagnosis]:
    """Makes a diagnosis from a run's readings."""
    return _diagnose
