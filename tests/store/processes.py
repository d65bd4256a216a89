"""Processes that the tests of the run's database start, and kill. Run as a script: `processes.py JOB FOLDER`."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sqlite3
import sys
import time
from pathlib import Path

from holdfast.core.errors import RunError
from holdfast.core.reading import Reading
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.stats.counts import Counts
from holdfast.stats.extremes import Extremes
from holdfast.stats.moments import Moments
from holdfast.stats.sketch import Sketch
from holdfast.stats.summary import Summary
from holdfast.store.ledger import Limits
from holdfast.store.reader import RunReader
from holdfast.store.writer import RunWriter

SITE = Site("fc", "input")


def summary(step: int) -> Summary:
    bins = [0] * 64
    bins[step % 64] = step
    return Summary(
        Moments(step, step / 4, 2.0 * step, 0.0, 0.0),
        Extremes(-float(step), float(step)),
        Counts(step, 0, 0, 0, 0, 0),
        Sketch(0, tuple(bins)),
    )


def record(step: int) -> StepRecord:
    reading = Reading("parameter-drift", SITE, step, step / 8, "reference SD", step, 0.25, (0.0, step / 2), 1)
    return StepRecord(step, values={"loss": step / 16}, summaries={SITE: summary(step)}, readings=(reading,))


def check(folder: Path, acknowledged: int) -> int:
    """Every step up to the acknowledged one is there, with the right content; the last step there."""
    with RunReader(folder) as run, run.moment():
        last = run.durable_step
        assert last >= acknowledged, (last, acknowledged)
        steps, values = run.values("loss")
        assert steps.tolist() == list(range(1, last + 1))
        assert values.tolist() == [step / 16 for step in range(1, last + 1)]
        for every in (1, 10, 100):
            seen = 0
            for step, each in run.summaries(SITE, every=every):
                parts = [summary(k) for k in range(seen + 1, step + 1)]
                assert each.counts.total == each.moments.count == sum(part.counts.total for part in parts)
                assert each.extremes.high == step
                bins = [sum(bins) for bins in zip(*(part.sketch.bins for part in parts), strict=True)]
                assert each.sketch.bins == tuple(bins)
                seen = step
            assert seen == last
            seen = 0
            for reading in run.readings("parameter-drift", SITE, every=every):
                mean = (seen + 1 + reading.step) / 2
                assert abs(reading.value - mean / 8) < 1e-6 * mean, reading
                assert reading.n == seen + 1
                seen = reading.step
            assert seen == last
    connection = sqlite3.connect(f"file:{run.path}?mode=ro", uri=True)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    return last


def write_until_killed(folder: Path, pipe: int) -> None:
    """Seals all the time; says after each step how far it is durable."""
    writer = RunWriter(folder, limits=Limits(queue=10_000, linger=0.001, seal=12, ring=60))
    acknowledged, step = 0, 0
    while True:
        step += 1
        writer.write(record(step))
        if writer.durable_step > acknowledged:
            acknowledged = writer.durable_step
            os.write(pipe, f"{acknowledged}\n".encode())
        time.sleep(0.0005)


def kill(folder: Path, times: int = 25) -> None:
    """Kill writers at random moments and look at what they left."""
    generator = random.Random(0)
    for turn in range(times):
        place = folder / str(turn)
        inlet, outlet = os.pipe()
        child = os.fork()
        if not child:
            os.close(inlet)
            write_until_killed(place, outlet)
        os.close(outlet)
        said = os.read(inlet, 1 << 16)  # wait for the first commit, so that there is something to lose
        time.sleep(generator.uniform(0.0, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(inlet, "rb") as rest:
            said += rest.read()
        acknowledged = int(said[: said.rindex(b"\n")].split()[-1])
        last = check(place, acknowledged)
        print(json.dumps({"acknowledged": acknowledged, "last": last}), flush=True)


def live(folder: Path) -> None:
    """Write until told to stop."""
    writer = RunWriter(folder, limits=Limits(linger=0.01, seal=12, ring=60))
    step = 0
    print("ready", flush=True)
    while not (folder / "stop").exists():
        step += 1
        writer.write(record(step))
        time.sleep(0.002)
    writer.close()
    print(step, flush=True)


def fork(folder: Path) -> None:
    """A child, as of a data loader, that writes, closes and exits as Python does; its parent goes on."""
    writer = RunWriter(folder, limits=Limits(queue=1000))
    writer.write(record(1))
    while writer.durable_step < 1:
        time.sleep(0.01)
    child = os.fork()
    if not child:
        writer.write(record(99))
        writer.close()
        sys.exit(0)  # runs what is registered for the exit
    assert os.waitpid(child, 0)[1] == 0
    for step in range(2, 200):
        writer.write(record(step))
    writer.close()
    print(check(folder, 199))


def leave(folder: Path) -> None:
    """Exit without closing, as a script that ends; or by Ctrl-C, as one that is stopped."""
    writer = RunWriter(folder, limits=Limits(linger=5.0))
    for step in range(1, 51):
        writer.write(record(step))
    print("written", flush=True)
    if len(sys.argv) > 3:
        time.sleep(60)


def cramped(folder: Path) -> None:
    """A file-size limit, which to SQLite is a full disk, is met, then lifted."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = RunWriter(folder, limits=Limits(queue=20, linger=0.001, retry=0.05))
    everything = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, everything[1]))
    step = 0
    while not writer.dropped:
        step += 1
        writer.write(record(step))
        time.sleep(0.0001)
    stuck = writer.durable_step
    resource.setrlimit(resource.RLIMIT_FSIZE, everything)
    deadline = time.monotonic() + 30
    while writer.durable_step <= stuck or writer.durable_step < step:
        step += 1
        writer.write(record(step))
        time.sleep(0.05)
        assert time.monotonic() < deadline
    writer.close()
    with RunReader(folder) as run:
        kinds = {event.kind: event.message for event in run.events()}
        print(
            json.dumps(
                {
                    "dropped": writer.dropped,
                    "coarsened": writer.coarsened,
                    "step": step,
                    "events": kinds,
                    "kept": len(run.values("loss")[0]),
                    "full": len(run.readings("parameter-drift")),
                }
            )
        )


def unprivileged(folder: Path) -> None:
    """As nobody: a finished run, a running one and a crashed one in folders that cannot be written; then no new run."""
    jobs = {"finished": folder / "finished", "running": folder / "running", "crashed": folder / "crashed"}
    writers = [RunWriter(place, limits=Limits(linger=0.0)) for place in jobs.values()]
    for writer in writers:
        for step in range(1, 31):
            writer.write(record(step))
        while writer.durable_step < 30:
            time.sleep(0.01)
    writers[0].close()
    crashed = jobs["crashed"]
    for each in list(crashed.iterdir()):  # a crash leaves file and log, and no shared memory that is in use
        if each.suffix == ".sqlite" or each.name.endswith("-wal"):
            (crashed / "copy").mkdir(exist_ok=True)
            (crashed / "copy" / each.name).write_bytes(each.read_bytes())
    jobs["crashed"] = crashed / "copy"
    for place in (*jobs.values(), folder):
        place.chmod(0o555)
    child = os.fork()
    if not child:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        found = {}
        for name, place in jobs.items():
            with RunReader(place) as run:
                found[name] = [run.steps, len(run.readings("parameter-drift"))]
        for place in (folder / "new", folder / "finished"):
            try:
                RunWriter(place)
            except RunError as error:
                found.setdefault("refused", []).append(str(error))
        print(json.dumps(found), flush=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    for place in (folder, *jobs.values()):
        place.chmod(0o755)
    assert status == 0


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
