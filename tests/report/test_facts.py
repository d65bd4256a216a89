from __future__ import annotations

from holdfast.core.structure import ModuleNode, ParameterNode, Structure
from holdfast.report.facts import run_facts
from holdfast.store.memory import MemoryRun


def test_what_the_run_was(run):
    facts = dict(run_facts(run))
    assert facts["Optimiser steps"] == "400"
    assert facts["Model"] == "Sequential: 20 leaf modules, 40\u202f960 parameters"  # 10 × 64 × 64
    assert facts["Optimiser"] == "SGD, lr 1.0"
    assert facts["Layers observed"] == "at 134 steps, 3 steps apart (median)".replace("3 steps", "3.0 steps")
    assert facts["Monitor"] == "observed 133 of 400 steps; took 3.1%: run 12 s, hooks 0.20 s, probes 0.10 s"
    assert facts["Events"] == "1 × alarm, 1 × cadence"


def test_a_shared_parameter_counts_once():
    weight = ParameterNode("a.weight", (3, 2), "float32", True)
    twin = ParameterNode("b.weight", (3, 2), "float32", True)
    nodes = tuple(ModuleNode(each.name[0], "Linear", (), True, (each,)) for each in (weight, twin))
    run = MemoryRun()
    run.describe(Structure("net", "Tied", nodes, aliases=(("a.weight", "b.weight"),)))
    assert dict(run_facts(run))["Model"] == "Tied: 2 leaf modules, 6 parameters"


def test_an_empty_run():
    assert run_facts(MemoryRun("runs/x")) == [("Run", "runs/x"), ("Optimiser steps", "0")]
