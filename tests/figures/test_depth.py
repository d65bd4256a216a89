from __future__ import annotations

from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.figures.depth import by_depth
from holdfast.stats.summary import Summary
from holdfast.store.memory import MemoryRun


def test_the_structure_gives_the_order(run):
    sites = run.sites(port="grad_output")
    shuffled = sorted(sites, key=lambda site: hash(site.module))
    assert [site.module for site in by_depth(run, shuffled)] == list(run.structure().order)


def test_without_structure_the_order_of_the_inputs_counts():
    run = MemoryRun()
    names = ("z", "a", "m")
    run.write(StepRecord(1, summaries={Site(name, "input"): Summary.empty() for name in names}))
    gradients = [Site(name, "grad_output") for name in reversed(names)]
    assert [site.module for site in by_depth(run, gradients)] == list(names)


def test_calls_of_one_module_follow_each_other():
    sites = [Site("a", "input", call=1), Site("a", "input", call=0)]
    assert [site.call for site in by_depth(MemoryRun(), sites)] == [0, 1]
