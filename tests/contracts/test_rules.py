"""What every rule keeps to, found by iteration."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest

import holdfast.diagnosis
from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.structure import Group, ModuleNode, ParameterNode, Structure
from holdfast.diagnosis import RULES
from holdfast.diagnosis.diagnose import diagnose
from holdfast.diagnosis.rule import TREATMENTS, Rule
from holdfast.diagnosis.verdict import SHIFT, verdict_of
from holdfast.stats.channels import ChannelMoments
from holdfast.store.memory import MemoryRun

SECTIONS = ("What it sees:", "Why it matters:", "When it is wrong:", "Example:", "What to do:", "References:")
FOLDER = Path(holdfast.diagnosis.__file__).parent

each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


@each_rule
def test_is_a_frozen_dataclass_in_a_file_of_its_name(rule):
    assert dataclasses.is_dataclass(rule)
    module = importlib.import_module(type(rule).__module__)
    assert Path(module.__file__).stem == rule.name.replace("-", "_")
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.name = "other"


@each_rule
def test_has_a_card_with_its_sections_in_order(rule):
    card = inspect.getdoc(type(rule))
    places = [card.find(f"\n{section}\n") for section in SECTIONS]
    assert -1 not in places
    assert places == sorted(places)
    assert card.splitlines()[0].endswith(".")


@each_rule
def test_names_treatments_that_exist(rule):
    assert rule.treatments
    assert set(rule.treatments) <= set(TREATMENTS)


@each_rule
def test_tells_the_verdict_what_to_call_it(rule):
    assert isinstance(rule, Rule)
    assert rule.subject
    assert rule.subject == rule.subject.strip(" .")
    finding = Finding(rule.name, "critical", (Site("a", "input"),), "message", (_drift(),))
    verdict = verdict_of(MemoryRun(), (finding,), (), {rule.name: rule.subject})
    assert rule.subject.lower() in verdict.lower() or rule.name in SHIFT


def test_a_rule_of_ones_own_needs_no_entry_elsewhere():
    @dataclasses.dataclass(frozen=True)
    class Own:
        name: str = "own"
        subject: str = "the colour of the weights"
        treatments: tuple[str, ...] = ()
        static: bool = False

        def check(self, history):
            return [Finding(self.name, "critical", (), "too green", ())]

    assert diagnose(MemoryRun(), rules=(Own(),)).verdict.startswith(
        "The colour of the weights is what holds this run back"
    )


def test_names_of_rules_stand_in_their_files_and_in_no_table_of_words():
    """The verdict names shift, and nothing else, by a rule's name."""
    source = (FOLDER / "verdict.py").read_text("utf-8")
    assert {rule.name for rule in RULES if f'"{rule.name}"' in source} == set(SHIFT)


@each_rule
def test_an_empty_history_is_inconclusive(rule):
    answer = rule.check(MemoryRun("empty"))
    assert isinstance(answer, Inconclusive)
    assert (answer.rule, bool(answer.reason)) == (rule.name, True)


@each_rule
def test_a_structure_without_readings_is_no_finding(rule):
    run = MemoryRun("static")
    run.describe(_structure(["a", "b"]))
    answer = rule.check(run)
    assert isinstance(answer, Inconclusive) or answer == []


@pytest.fixture(scope="module")
def null() -> MemoryRun:
    """Fifty layers, 100 steps: drift at its floor's level, all else well and noisy."""
    generator = np.random.default_rng(0)
    names = [f"l{k}" for k in range(50)]
    run = MemoryRun("null")
    run.describe(_structure(names))
    count = np.full(8, 64.0)
    for step in range(1, 101):
        readings, channels = [], {}
        for name in names:
            site = Site(name, "input")
            # |N(0, 1)| / 1.96 has its 95th percentile at 1, the floor.
            drift = abs(float(generator.standard_normal())) / 1.96
            readings.append(Reading("parameter-drift", site, step, drift, "reference SD", 64, 1.0, (0.0, 2.0), 1))
            far = abs(float(generator.standard_normal())) / 1.96 * 5
            readings += [
                Reading("parameter-drift", site.at(phase="probe"), step, far, "reference SD", 64, 5.0, (0.0, 9.0), 100),
                Reading("saturated-fraction", site, step, float(generator.binomial(64, 0.05) / 64), "fraction", 64),
                Reading("collapsed-features", site, step, 0.0, "fraction", 64),
                Reading("dead-units", site.at(port="output"), step, float(generator.uniform(0, 0.15)), "fraction", 640),
            ]
            norms = np.exp(0.3 * generator.standard_normal(4)).tolist()
            weight = site.at(port="weight", leaf="weight")
            readings += [
                Reading("gradient-norm", site.at(port="grad_output"), step, norms[0], "L2 norm", 64),
                Reading("gradient-norm", weight.at(port="weight_grad"), step, norms[1], "L2 norm", 64),
                Reading("weight-norm", weight, step, norms[2], "L2 norm", 64),
                Reading("update-ratio", weight.at(port="update"), step, 1e-3 * norms[3], "ratio", 64),
            ]
            if step % 10 == 1:
                mean = generator.standard_normal(8) / 8
                channels[site] = ChannelMoments(count, mean, 64 * generator.chisquare(63, 8) / 63, np.zeros(8))
        values = {"loss": float(np.exp(0.1 * generator.standard_normal())), "gradient-norm": norms[0]}
        run.write(StepRecord(step, values=values, readings=tuple(readings), channels=channels))
    return run


@each_rule
def test_noise_fires_nothing(rule, null):
    assert rule.check(null) == []


def test_noise_is_acquitted(null):
    diagnosis = diagnose(null)
    assert (diagnosis.findings, diagnosis.inconclusive) == ((), ())
    assert "internal covariate shift is not what holds this run back" in diagnosis.verdict


@each_rule
def test_odd_readings_crash_nothing(rule):
    """One or three sites, few steps; NaN, infinities, negative and huge values; two streams without a structure."""
    run = MemoryRun("odd")
    ports = {
        "parameter-drift": "input",
        "saturated-fraction": "input",
        "collapsed-features": "input",
        "dead-units": "output",
        "gradient-norm": "grad_output",
        "update-ratio": "update",
    }
    for stream in ("net", "other"):
        for step, value in enumerate((float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e300), 1):
            readings = [
                Reading(measure, Site(module, port, stream=stream), step, value, "unit", 64, 0.1, lag=1)
                for measure, port in ports.items()
                for module in ("a", "b", "c")[: 1 if measure == "parameter-drift" else 3]
            ]
            odd = ChannelMoments(np.full(2, 64.0), np.array([value, 1.0]), np.array([abs(value), 1.0]), np.zeros(2))
            run.write(
                StepRecord(
                    step,
                    stream,
                    {"loss": value, "gradient-norm": value},
                    channels={Site("a", "input", stream=stream): odd},
                    readings=tuple(readings),
                )
            )
    answer = rule.check(run)
    assert isinstance(answer, Inconclusive) or all(isinstance(each, Finding) for each in answer)


def test_every_file_of_a_rule_is_in_the_table():
    stems = {rule.name.replace("-", "_") for rule in RULES}
    with_check = {path.stem for path in FOLDER.glob("*.py") if "    def check(" in path.read_text("utf-8")}
    assert with_check - {"rule"} == stems


def _drift() -> Reading:
    return Reading("parameter-drift", Site("a", "input"), 1, 1.0, "reference SD", 64, 0.1, (0.9, 1.1), lag=100)


def _structure(names: list[str]) -> Structure:
    nodes = tuple(
        ModuleNode(name, "Linear", ("Linear",), True, (ParameterNode(f"{name}.weight", (8, 8), "float32", True),))
        for name in names
    )
    group = Group({"lr": 0.1, "weight_decay": 0.0}, tuple(f"{name}.weight" for name in names))
    edges = tuple(zip(("", *names), names, strict=False))
    return Structure("net", "Net", nodes, tuple(names), edges, optimiser="SGD", groups=(group,))
