from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.core.errors import RunError
from holdfast.core.protocols import Sink
from holdfast.core.record import StepRecord
from holdfast.core.structure import Structure
from holdfast.store.reader import RunReader
from holdfast.store.shared import SharedWriter
from holdfast.store.writer import RunWriter


def test_two_streams_are_one_run(tmp_path: Path) -> None:
    shared = SharedWriter(lambda: RunWriter(tmp_path / "run"))
    one, two = shared.sink(), shared.sink()
    assert isinstance(one, Sink)
    one.describe(Structure("one", "One", ()))
    for step in (1, 2, 3):
        one.write(StepRecord(step, "one", {"loss": float(step)}))
        two.write(StepRecord(step, "two", {"loss": -float(step)}))
    two.describe(Structure("two", "Two", ()))
    one.close()
    one.write(StepRecord(4, "one", {"loss": 4.0}))  # of a watch that has ended
    two.write(StepRecord(4, "two", {"loss": -4.0}))
    assert one.seconds + two.seconds == pytest.approx(shared.writer.seconds, rel=0.5, abs=0.1)
    shared.close()
    shared.close()
    two.write(StepRecord(5, "two", {"loss": -5.0}))
    with RunReader(tmp_path / "run") as run:
        assert run.streams() == ["one", "two"]
        assert [run.structure(name).model for name in run.streams()] == ["One", "Two"]
        assert run.values("loss", "one")[1].tolist() == [1, 2, 3]
        assert run.values("loss", "two")[1].tolist() == [-1, -2, -3, -4]
    assert two.durable_step == 3  # of the stream that is furthest behind


def test_a_watch_without_a_step_leaves_no_folder(tmp_path: Path) -> None:
    shared = SharedWriter(lambda: RunWriter(tmp_path / "run"))
    sink = shared.sink()
    sink.describe(Structure("net", "Net", ()))
    sink.write(StepRecord(0))
    assert (sink.durable_step, sink.seconds, shared.folder) == (0, 0.0, None)
    sink.close()
    shared.close()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in the way")
    shared = SharedWriter(lambda: RunWriter(tmp_path / "run"))
    one, two = shared.sink(), shared.sink()
    with pytest.raises(RunError):
        one.write(StepRecord(1, "one"))
    two.write(StepRecord(1, "two"))
    one.write(StepRecord(2, "one"))
    shared.close()
