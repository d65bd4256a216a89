"""Every run folder that cannot be read or written is told in one sentence: expected, got, what to type."""

import shutil
import sqlite3

import numpy as np
import pytest

from holdfast.core.errors import RunError
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.store.reader import RunReader
from holdfast.store.writer import RunWriter

RECORD = "record a run with hf.watch(model, optimizer, run=FOLDER), or type: holdfast demo"


@pytest.fixture(scope="module")
def run(tmp_path_factory, record_of):
    """A finished run of 200 steps."""
    folder = tmp_path_factory.mktemp("run")
    writer = RunWriter(folder)
    for step in range(1, 201):
        writer.write(record_of(step))
        while writer._worker._queue.qsize() > 50:
            pass
    writer.close()
    return folder


@pytest.fixture
def file(run, tmp_path):
    """A copy of its database, to be damaged."""
    return shutil.copytree(run, tmp_path / "run") / "attempt-001.rank-000.sqlite"


def refusal(place, **options):
    with pytest.raises(RunError) as caught:
        RunReader(place, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_everything(place):
    with RunReader(place) as run:
        for name in run.value_names():
            run.values(name)
        for measure in run.measures():
            run.readings(measure)
        for site in run.sites():
            run.summaries(site)
            run.channels(site)
        run.tables("profile")
        run.events()


def test_no_such_folder(tmp_path):
    there = tmp_path / "runs" / "x"
    assert refusal(there) == f"expected a run's folder; got '{there}', which does not exist; {RECORD}"
    assert not there.exists()


def test_an_empty_folder(tmp_path):
    assert refusal(tmp_path) == f"expected a run's folder; got '{tmp_path}', in which no run was recorded; {RECORD}"


def test_an_empty_file(tmp_path):
    file = tmp_path / "attempt-001.rank-000.sqlite"
    file.touch()
    expected = f"expected a run with recorded steps; got '{file}', which is empty; {RECORD}"
    assert refusal(tmp_path) == expected
    assert refusal(file) == expected


def test_a_newer_schema(file):
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version=7")
    connection.close()
    assert refusal(file.parent) == (
        f"expected a run of schema 1; got '{file}' of schema 7, written by a newer Holdfast;"
        " type: pip install --upgrade holdfast"
    )


@pytest.mark.parametrize("version", [0, -3])
def test_an_unknown_schema(file, version):
    with sqlite3.connect(file) as connection:
        connection.execute(f"PRAGMA user_version={version}")
    connection.close()
    assert refusal(file) == f"expected a run of schema 1; got '{file}' of unknown schema {version}; {RECORD}"


def test_another_programs_database(tmp_path):
    file = tmp_path / "bookmarks.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE bookmark (name)")
    connection.close()
    assert refusal(file) == f"expected a run's database; got '{file}', a database of another program; {RECORD}"


def test_not_a_database(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("milk, eggs\n" * 1000)
    assert refusal(file) == f"expected a run's database; got '{file}', which is not a database; {RECORD}"


def test_overwritten_with_random_bytes(file):
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))
    assert refusal(file.parent) == f"expected a run's database; got '{file}', which is not a database; {RECORD}"


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 0.999])
def test_truncated(file, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    message = refusal(file.parent)
    assert message.startswith(("expected a run's database that is whole; got", "expected a run's database; got"))
    assert "damaged" in message or "not a database" in message


@pytest.mark.parametrize("seed", range(12))
def test_random_bytes_inside_never_give_wrong_figures_or_another_error(file, run, seed):
    generator = np.random.default_rng(seed)
    data = bytearray(file.read_bytes())
    length = int(generator.choice([16, 2000, 60_000]))
    at = int(generator.integers(100, len(data) - length))
    data[at : at + length] = generator.bytes(length)
    file.write_bytes(data)
    with RunReader(run) as whole:
        expected = [(name, whole.values(name)[1].tolist()) for name in whole.value_names()]
    told = None
    try:
        read_everything(file)
        with RunReader(file) as damaged:
            found = [(name, damaged.values(name)[1].tolist()) for name in damaged.value_names()]
    except RunError as error:
        told = str(error)
    if told is None:
        assert found == expected
    else:
        assert "damaged" in told
        assert "restore it from a copy" in told


def test_no_such_attempt(run):
    assert refusal(run, attempt=5) == (f"expected one of the attempts 1; got attempt 5 of '{run}'; leave attempt out")


def test_an_error_of_the_caller_is_not_called_damage(run):
    with pytest.raises(KeyError), RunReader(run) as reader, reader.moment():
        raise KeyError("mine")


def test_a_closed_reader_says_so(run):
    reader = RunReader(run)
    reader.close()
    reader.close()
    with pytest.raises(RunError, match="which was closed"):
        reader.summaries(Site("fc1", "input"))


def test_a_run_in_a_file_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for place, cause in ((tmp_path / "file" / "run", "Not a directory"), (tmp_path / "file", "File exists")):
        with pytest.raises(RunError) as caught:
            RunWriter(place)
        assert str(caught.value) == (
            f"expected a folder that can be written, for the run; got '{place}' ({cause});"
            " name another: hf.watch(model, optimizer, run=FOLDER)"
        )


def test_reading_changes_nothing(run):
    before = {each.name: each.read_bytes() for each in run.iterdir()}
    read_everything(run)
    assert {each.name: each.read_bytes() for each in run.iterdir()} == before


def test_what_cannot_be_packed_costs_its_statistics_not_the_loss(tmp_path):
    class Broken:
        COLUMNS = ()

        def pack(self):
            raise ArithmeticError("no figures")

        def __add__(self, other):
            return self

        @classmethod
        def unpack(cls, vector):
            return cls()

    writer = RunWriter(tmp_path)
    writer.write(StepRecord(1, values={"loss": 0.5}, summaries={Site("fc", "input"): Broken()}))
    writer.write(StepRecord(2, values={"loss": 0.25}))
    writer.close()
    with RunReader(tmp_path) as run:
        assert run.values("loss")[1].tolist() == [0.5, 0.25]
        (event,) = run.events("monitor-error")
        assert event.step == 1
        assert "no figures" in event.message
