import shutil
import threading
import time
import warnings

import numpy as np
import pytest

from holdfast.core.event import Event
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.stats.summary import Summary
from holdfast.store.folder import reserve
from holdfast.store.ledger import Ledger, Limits
from holdfast.store.reader import RunReader
from holdfast.store.writer import RunWriter

SITE = Site("fc1", "input")


@pytest.fixture(scope="module")
def long_run(tmp_path_factory, record_of):
    """1,234 steps with a ring of 200; an alarm at 405, two pinned steps."""
    folder = tmp_path_factory.mktemp("long")
    writer = RunWriter(folder, limits=Limits(queue=10**6, linger=0.0, ring=200))
    for step in range(1, 1235):
        record = record_of(step, pinned=step in (601, 612))
        if step == 405:
            record = StepRecord(
                step,
                values=record.values,
                readings=record.readings,
                summaries=record.summaries,
                channels=record.channels,
                events=(Event(405, "alarm", "loss rose"),),
            )
        writer.write(record)
    writer.close()
    with RunReader(folder) as run:
        yield run


def test_old_steps_are_merged_and_the_ring_and_pinned_ones_are_raw(long_run):
    steps = [reading.step for reading in long_run.readings("parameter-drift", SITE, lag=1)]
    raw_from = next(step for step in steps if step > 900 and step % 10 == 1)
    assert 1234 - 200 - 70 <= raw_from <= 1234 - 200
    pinned = [*range(341, 411), *range(601, 621)]  # 60 steps before the alarm, whole tens
    merged = [step for step in range(10, raw_from, 10) if step not in pinned]
    assert steps == sorted([*merged, *pinned, *range(raw_from, 1235)])


@pytest.mark.parametrize("every", [1, 10, 100, 1000])
def test_no_observation_is_counted_twice_or_lost(long_run, every):
    summaries = long_run.summaries(SITE, every=every)
    assert sum(summary.counts.total for _, summary in summaries) == 1234 // 2 * 32
    assert [step for step, _ in summaries] == sorted({step for step, _ in summaries})
    channels = long_run.channels(SITE.at(port="output"), every=every)
    assert sum(each.count[0] for _, each in channels) == 1234 // 2 * 8
    if every > 1:
        assert [step for step, _ in summaries] == [*range(every, 1234, every), 1234]


def test_merged_rows_are_the_statistic_of_all_their_data(long_run, data_of):
    (_, first), *_ = long_run.summaries(SITE, every=100)
    data = np.concatenate([data_of(step).ravel() for step in range(2, 101, 2)])
    assert (first.moments.count, first.counts.zeros) == (data.size, 50)
    np.testing.assert_allclose(
        [first.moments.mean, first.moments.variance, first.moments.skewness, first.moments.kurtosis],
        [data.mean(), data.var(), *(((data - data.mean()) ** k).mean() / data.std() ** k for k in (3, 4))],
        rtol=1e-4,
    )
    assert (first.extremes.low, first.extremes.high) == pytest.approx((data.min(), data.max()), rel=1e-6)


def test_cheap_values_are_kept_for_ever(long_run):
    steps, values = long_run.values("loss")
    assert steps.tolist() == list(range(1, 1235))
    np.testing.assert_allclose(values, 10 / np.arange(1, 1235), rtol=1e-7)


def test_an_envelope_keeps_the_extremes(long_run):
    envelope = long_run.envelope("parameter-drift", SITE, every=100)
    assert envelope.steps.tolist() == [*range(100, 1300, 100), 1234]
    np.testing.assert_allclose(envelope.least, 0.1 * np.r_[1, 101:1300:100], rtol=1e-6)
    np.testing.assert_allclose(envelope.greatest, 0.1 * envelope.steps, rtol=1e-6)
    assert envelope.n.tolist() == [100] * 12 + [34]
    assert long_run.envelope("no such", SITE).steps.size == 0


def test_a_backlog_splits_no_bucket(tmp_path, record_of):
    """What waited while the disk was slow is committed at once: it is sealed by whole buckets all the same."""
    file = reserve(tmp_path, 0)
    ledger = Ledger(file, Limits(seal=20, ring=20))
    ledger.commit([ledger.entry(record_of(step)) for step in range(1, 653)], [])
    ledger.seal()
    ledger.commit([ledger.entry(record_of(step)) for step in range(653, 701)], [])
    ledger.seal(final=True)
    ledger.close()
    with RunReader(tmp_path) as run:
        steps = [step for step, _ in run.channels(SITE.at(port="output"))]
    assert all(step % 10 == 0 for step in steps)
    assert steps[-5:] == [660, 670, 680, 690, 700]


def test_channels_far_back_are_merged_over_a_hundred_steps(tmp_path, record_of):
    writer = RunWriter(tmp_path, limits=Limits(queue=10**6, linger=0.0, seal=20, ring=20))
    for step in range(1, 701):
        writer.write(record_of(step))
    writer.close()
    with RunReader(tmp_path) as run:
        found = run.channels(SITE.at(port="output"))
    steps = [step for step, _ in found]
    assert steps == [*range(100, 500, 100), *range(410, 701, 10)] or steps == [
        *range(100, 501, 100),
        *range(510, 701, 10),
    ]
    assert sum(each.count[0] for _, each in found) == 350 * 8


def test_counts_beyond_float32_survive(tmp_path):
    count = 2**24 + 1
    row = Summary.empty().pack()
    row[[0, 7, 20]] = count
    writer = RunWriter(tmp_path)
    for step in range(1, 101):
        writer.write(StepRecord(step, summaries={SITE: Summary.unpack(row)}))
    writer.close()
    with RunReader(tmp_path) as run:
        assert {each.counts.total for _, each in run.summaries(SITE)} == {count}
        assert {each.sketch.count for _, each in run.summaries(SITE, every=100)} == {100 * count}


def test_a_second_run_is_a_new_attempt_and_the_newest_is_read(tmp_path, write):
    for steps in (3, 5):
        write(steps, folder=tmp_path)
    write(7, folder=tmp_path, rank=1)
    with RunReader(tmp_path) as newest, RunReader(tmp_path, attempt=1) as first, RunReader(tmp_path, rank=1) as other:
        assert (newest.attempt, newest.steps, list(newest.attempts)) == (2, 5, [1, 2])
        assert (first.attempt, first.steps) == (1, 3)
        assert (other.attempt, other.rank, other.steps) == (1, 1, 7)
        assert newest.name == str(tmp_path)
    (tmp_path / "attempt-003.rank-000.sqlite").touch()  # a run that died before its first word
    with RunReader(tmp_path) as newest:
        assert newest.attempt == 2


def test_two_writers_at_once_get_two_files(tmp_path):
    writers = [RunWriter(tmp_path) for _ in range(3)]
    assert [writer.attempt for writer in writers] == [1, 2, 3]
    for writer in writers:
        writer.close()


def test_a_finished_run_is_one_plain_file(tmp_path, write):
    writer = write(50, folder=tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [writer.path.name]
    assert writer.durable_step == 50


def test_writing_after_close_does_nothing(tmp_path, write, record_of):
    writer = write(5, folder=tmp_path)
    writer.write(record_of(6))
    writer.close()
    with RunReader(tmp_path) as run:
        assert run.steps == 5


def test_a_forgotten_writer_writes_what_it_has(tmp_path, record_of):
    writer = RunWriter(tmp_path, limits=Limits(linger=5.0))
    writer.write(record_of(1))
    thread = writer._worker.thread
    del writer
    thread.join(10)
    with RunReader(tmp_path) as run:
        assert run.steps == 1


def stall(writer, monkeypatch):
    """Keep the disk from taking anything until the event is set."""
    gate = threading.Event()
    commit = writer._worker.ledger.commit

    def wait(*arguments):
        gate.wait(20)
        commit(*arguments)

    monkeypatch.setattr(writer._worker.ledger, "commit", wait)
    return gate


def test_a_slow_disk_coarsens_and_counts_and_never_blocks(tmp_path, record_of, monkeypatch):
    writer = RunWriter(tmp_path, limits=Limits(queue=10, linger=0.0))
    records = [record_of(step) for step in range(1, 61)]
    gate = stall(writer, monkeypatch)
    begin = time.monotonic()
    for record in records[:-1]:
        writer.write(record)
    assert time.monotonic() - begin < 5
    coarsened = writer.coarsened
    assert coarsened >= 59 - 2 * 10 - 1
    gate.set()
    while writer._worker._queue.qsize():
        time.sleep(0.01)
    writer.write(records[-1])
    writer.close()
    with RunReader(tmp_path) as run:
        assert run.values("loss")[0].tolist() == list(range(1, 61))
        assert len(run.readings("saturated-fraction")) == 60 - coarsened
        (event,) = run.events("coarsened")
        assert event.step == 60
        assert event.data["coarsened"] == coarsened == writer.coarsened
        assert len(run.events("cadence")) == 1  # events are never coarsened away


def test_a_squeeze_at_the_very_end_is_told_too(tmp_path, record_of, monkeypatch):
    writer = RunWriter(tmp_path, limits=Limits(queue=2, linger=0.0))
    gate = stall(writer, monkeypatch)
    for step in range(1, 80):
        writer.write(record_of(step))
    assert writer.dropped
    threading.Timer(0.2, gate.set).start()
    writer.close()
    with RunReader(tmp_path) as run:
        assert sum(event.data["dropped"] for event in run.events("coarsened")) == writer.dropped
        assert len(set(run.values("loss")[0].tolist())) == 79 - writer.dropped
        assert len(run.events("cadence")) == 1


def test_cheap_values_alone_are_not_called_coarsened(tmp_path, monkeypatch):
    writer = RunWriter(tmp_path, limits=Limits(queue=4, linger=0.0))
    gate = stall(writer, monkeypatch)
    for step in range(1, 41):
        writer.write(StepRecord(step, values={"loss": 1.0}))
    gate.set()
    writer.close()
    with RunReader(tmp_path) as run:
        assert (writer.coarsened, writer.dropped, list(run.events())) == (0, 0, [])
        assert len(run.values("loss")[0]) == 40


def test_a_full_database_is_told_once_and_recording_goes_on_when_there_is_room(tmp_path, record_of):
    writer = RunWriter(tmp_path, limits=Limits(queue=8, linger=0.0, retry=0.02))
    connection = writer._worker.ledger.connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        connection.execute(f"PRAGMA max_page_count={pages + 1}")
        step = 0
        while not (writer.dropped and caught):  # records may be dropped before the thread has tried to write one
            step += 1
            writer.write(record_of(step))
        connection.execute("PRAGMA max_page_count=1000000")
        while writer.durable_step < step:
            step += 1
            writer.write(record_of(step))
            time.sleep(0.01)
        writer.close()
    (warning,) = caught
    assert "database or disk is full" in str(warning.message)
    with RunReader(tmp_path) as run:
        assert len(run.values("loss")[0]) == step - writer.dropped
        (event,) = run.events("monitor-error")
        assert "database or disk is full" in event.message


def test_a_disk_that_stays_full_does_not_keep_close_waiting(tmp_path, record_of):
    writer = RunWriter(tmp_path, limits=Limits(linger=0.0, retry=60.0))
    connection = writer._worker.ledger.connection
    connection.execute("PRAGMA max_page_count=1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 40):
            writer.write(record_of(step))
        begin = time.monotonic()
        writer.close()
    assert ["database or disk is full" in str(each.message) for each in caught] == [True]
    assert time.monotonic() - begin < 20


def test_a_folder_that_vanishes_does_not_end_training(tmp_path, record_of):
    writer = RunWriter(tmp_path / "run", limits=Limits(linger=0.0, retry=0.02))
    writer.write(record_of(1))
    while writer.durable_step < 1:
        time.sleep(0.01)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        writer.write(record_of(2))
        time.sleep(0.2)
        assert writer.durable_step == 1
        shutil.move(tmp_path / "elsewhere", tmp_path / "run")
        while writer.durable_step < 2:
            time.sleep(0.01)
        writer.close()
    assert ["the run cannot be written" in str(each.message) for each in caught] == [True]
    with RunReader(tmp_path / "run") as run:
        assert run.steps == 2


def test_a_warning_made_an_error_does_not_reach_training(tmp_path, record_of, capsys):
    writer = RunWriter(tmp_path / "run", limits=Limits(linger=0.0, retry=0.02))
    shutil.rmtree(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.write(record_of(1))
        writer.close()
    assert "the run cannot be written to" in capsys.readouterr().err


def test_records_without_rising_steps_are_sealed_all_the_same(tmp_path):
    writer = RunWriter(tmp_path, limits=Limits(queue=10**6, linger=0.0, seal=10))
    for _ in range(100):
        writer.write(StepRecord(3, values={"loss": 1.0}))
    writer.close()
    with RunReader(tmp_path) as run:
        assert run.values("loss")[0].tolist() == [3] * 100
