"""What a rule reads is the same from memory, from a file that is being written, and from one that is finished."""

import dataclasses
import time

import numpy as np
import pytest

from holdfast.core.protocols import History, Sink
from holdfast.core.site import Site
from holdfast.stats.summary import Summary
from holdfast.store.ledger import Limits
from holdfast.store.memory import MemoryRun
from holdfast.store.reader import RunReader
from holdfast.store.writer import RunWriter

STEPS = 171  # two seals, and some in the tail


@pytest.fixture(scope="module", params=["live", "closed"])
def both(request, tmp_path_factory, record_of, structure):
    folder = tmp_path_factory.mktemp("runs") / "run"
    memory, writer = MemoryRun(), RunWriter(folder, limits=Limits(queue=10**6, linger=0.0))
    sinks: list[Sink] = [memory, writer]
    for sink in sinks:
        sink.describe(structure)
    for step in range(1, STEPS + 1):
        for record in [record_of(step)] + ([record_of(step // 3, stream="critic")] if step % 3 == 0 else []):
            for sink in sinks:
                sink.write(record)
    if request.param == "closed":
        writer.close()
    with RunReader(folder) as reader:
        wait_for(lambda: (reader.steps, reader.durable_step) == (STEPS, STEPS // 3))
        yield memory, reader
    writer.close()
    assert writer.coarsened == writer.dropped == 0


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rounded(reading):
    interval = reading.interval and tuple(float(np.float32(end)) for end in reading.interval)
    floor = None if reading.noise_floor is None else float(np.float32(reading.noise_floor))
    return dataclasses.replace(reading, value=float(np.float32(reading.value)), noise_floor=floor, interval=interval)


def test_same_names(both):
    memory, reader = both
    runs: list[History] = [memory, reader]
    for ask in (
        lambda run: run.steps,
        lambda run: list(run.streams()),
        lambda run: run.structure(),
        lambda run: run.structure("critic"),
        lambda run: list(run.sites()),
        lambda run: list(run.sites(port="output")),
        lambda run: list(run.sites(phase="probe")),
        lambda run: list(run.sites(port="input", phase="train", stream="critic")),
        lambda run: list(run.value_names()),
        lambda run: list(run.value_names("critic")),
        lambda run: list(run.measures()),
    ):
        assert ask(runs[0]) == ask(runs[1])
    assert reader.durable_step == STEPS // 3  # of the stream that is behind


@pytest.mark.parametrize("stream", ["net", "critic", "nobody"])
@pytest.mark.parametrize("name", ["loss", "learning-rate", "no such"])
def test_same_values(both, name, stream):
    (steps, values), (again, figures) = (run.values(name, stream) for run in both)
    assert (steps.dtype, values.dtype) == (again.dtype, figures.dtype)
    assert steps.tolist() == again.tolist()
    np.testing.assert_allclose(figures, values, rtol=2.0**-24)


@pytest.mark.parametrize("measure", ["parameter-drift", "saturated-fraction", "no such"])
@pytest.mark.parametrize("site", [None, Site("fc1", "input"), Site("nowhere", "input")])
@pytest.mark.parametrize("lag", [None, 1, 10, 100])
def test_same_readings(both, measure, site, lag):
    def key(each):
        return (each.step, str(each.site), each.lag or 0)

    expected, found = (run.readings(measure, site, lag=lag) for run in both)
    assert [each.step for each in found] == sorted(each.step for each in expected)
    assert [rounded(each) for each in sorted(found, key=key)] == [rounded(each) for each in sorted(expected, key=key)]


def test_same_summaries(both):
    memory, reader = both
    for site in memory.sites():
        expected, found = memory.summaries(site), reader.summaries(site)
        assert [step for step, _ in found] == [step for step, _ in expected]
        for (_, a), (_, b) in zip(expected, found, strict=True):
            assert isinstance(b, Summary)
            np.testing.assert_allclose(b.pack(), a.pack(), rtol=2.0**-24)
            assert (b.counts, b.sketch, b.moments.count) == (a.counts, a.sketch, a.moments.count)
    assert reader.summaries(Site("nowhere", "input")) == []


def test_channels_merged_over_ten_steps_are_those_of_memory(both):
    memory, reader = both
    site = Site("fc1", "output")
    expected, found = memory.channels(site), reader.channels(site)
    assert len(found) < len(expected)
    before = 0
    for step, each in found:
        merged = [other for at, other in expected if before < at <= step]
        total = merged[0]
        for other in merged[1:]:
            total = total + other
        np.testing.assert_allclose(each.pack(), total.pack(), rtol=1e-6)
        before = step
    assert before == expected[-1][0]


def test_same_tables_and_events(both):
    memory, reader = both
    assert list(memory.tables("profile")) == list(reader.tables("profile"))
    assert memory.tables("profile")
    assert list(reader.tables("no such")) == []
    for kind in (None, "cadence", "alarm"):
        assert sorted(map(str, memory.events(kind))) == sorted(map(str, reader.events(kind)))
    assert memory.events("cadence")
