"""The thread that carries records from a bounded queue into the database."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from queue import Empty, SimpleQueue

from holdfast.core.event import Event
from holdfast.core.record import StepRecord
from holdfast.core.structure import Structure
from holdfast.core.warn import warn_user
from holdfast.store.ledger import Entry, Ledger

SCANT = 16
"""How many times as many coarsened records as full ones may wait before even those are dropped."""

KEPT_EVENTS = 1000
"""Records with events that are held back while nothing else has room."""


class Worker:
    """Takes records from the training thread, never makes it wait, never raises into it.

    Args:
        ledger: where they go.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.pid = os.getpid()
        self.coarsened = 0
        self.dropped = 0
        self.seconds = 0.0
        """Processor time that the thread has taken so far."""
        self._queue: SimpleQueue[StepRecord | Structure | None] = SimpleQueue()
        self._hurry = threading.Event()  # ends the wait for more records
        self._stopping = threading.Event()
        self._squeezed: tuple[StepRecord, int, int] | None = None  # first record of a squeeze, counts before it
        self._kept_events: deque[StepRecord] = deque(maxlen=KEPT_EVENTS)
        self._last = StepRecord(0)
        self._refused: tuple[int, str] | None = None  # the step at which the disk began to refuse, and its words
        self._warned = False
        self.thread = threading.Thread(target=self._work, name="holdfast-store", daemon=True)
        self.thread.start()

    # in the training thread

    def take(self, item: StepRecord | Structure) -> None:
        """Queue a record or a structure.

        Args:
            item: must not be changed afterwards.
        """
        if isinstance(item, Structure):
            self._queue.put(item)
            return
        self._last = item
        waiting, room = self._queue.qsize(), self.ledger.limits.queue
        if waiting >= room:
            if self._squeezed is None:
                self._squeezed = (item, self.coarsened, self.dropped)
            bulky = bool(item.summaries or item.channels or item.readings or item.tables)
            item = item.coarsened()
            if waiting >= SCANT * room:
                self.dropped += 1
                if item.events:
                    self._kept_events.append(replace(item, values={}))
                return
            self.coarsened += bulky
        elif self._squeezed is not None and waiting < room // 2:  # not at each step of a disk that just keeps up
            item = self._relieved(item)
        self._queue.put(item)
        if waiting >= room // 4:
            self._hurry.set()

    def _relieved(self, item: StepRecord) -> StepRecord:
        """There is room again: hand on the events that had none, and say what was left out."""
        assert self._squeezed is not None
        first, coarsened, dropped = self._squeezed
        self._squeezed = None
        while self._kept_events:
            self._queue.put(self._kept_events.popleft())
        coarsened, dropped = self.coarsened - coarsened, self.dropped - dropped
        if not coarsened and not dropped:  # records of cheap values only: nothing was left out
            return item
        event = Event(
            item.step,
            "coarsened",
            f"the disk did not keep up from step {first.step} on: {coarsened} records were kept without summaries"
            f" and readings, {dropped} were dropped",
            data={"first": first.step, "coarsened": coarsened, "dropped": dropped},
        )
        return replace(item, events=(*item.events, event))

    def stop(self) -> None:
        """Write what waits and end the thread; in another process than the one that began it, do nothing."""
        if os.getpid() != self.pid:
            return
        if not self._stopping.is_set():
            if self._squeezed is not None:
                self._queue.put(self._relieved(replace(self._last.coarsened(), values={}, events=())))
            self._stopping.set()
            self._queue.put(None)
        self._hurry.set()
        if threading.current_thread() is self.thread:  # the garbage collector may run anywhere
            return
        self.thread.join(self.ledger.limits.patience)
        if self.thread.is_alive():
            self._warn(f"the run's last records are still on their way to '{self.ledger.file.path}'")

    # in the thread

    def _work(self) -> None:
        try:
            while self._round():
                pass
        finally:
            self.ledger.close()

    def _round(self) -> bool:
        """Write what waits; whether there is more to come."""
        batch = [self._queue.get()]
        if not self._stopping.is_set():
            self._hurry.wait(self.ledger.limits.linger)
            self._hurry.clear()
        with contextlib.suppress(Empty):
            while len(batch) < self.ledger.limits.queue and batch[-1] is not None:
                batch.append(self._queue.get_nowait())
        more = batch[-1] is not None
        structures = [item for item in batch if isinstance(item, Structure)]
        entries = [self._entry(item) for item in batch if isinstance(item, StepRecord)]
        if not self._persist(lambda: self._commit(entries, structures)):
            self.dropped += len(entries)
        if self.ledger.due or not more:
            self._persist(lambda: self.ledger.seal(final=not more))
        self.seconds = time.thread_time()
        if not more and self._refused:
            self._warn(
                f"the run's last records could not be written to '{self.ledger.file.path}' ({self._refused[1]});"
                f" {self.dropped} records are missing from it"
            )
        return more

    def _entry(self, record: StepRecord) -> Entry:
        try:
            return self.ledger.entry(record)
        except Exception as error:  # a statistic that cannot be packed must not cost the loss
            self.coarsened += 1
            event = Event(record.step, "monitor-error", f"a record could not be stored: {error!r}")
            values = {name: value for name, value in record.values.items() if isinstance(value, (int, float))}
            return self.ledger.entry(replace(record.coarsened(), values=values, events=(*record.events, event)))

    def _commit(self, entries: list[Entry], structures: list[Structure]) -> None:
        if self._refused and entries:
            step, cause = self._refused
            event = Event(
                entries[-1].row.step,
                "monitor-error",
                f"the run could not be written from step {step} on ({cause});"
                f" {self.coarsened} records were coarsened and {self.dropped} dropped so far",
                data={"first": step, "cause": cause, "coarsened": self.coarsened, "dropped": self.dropped},
            )
            entries = [*entries[:-1], replace(entries[-1], events=(*entries[-1].events, event))]
        self.ledger.commit(entries, structures)
        self._refused = None

    def _persist(self, write: Callable[[], None]) -> bool:
        """Try until the disk takes it; once, when training is over."""
        while True:
            try:
                write()
            except (sqlite3.Error, OSError, MemoryError) as error:
                if self._refused is None:
                    self._refused = (self._last.step, str(error))
                self._warn(
                    f"the run cannot be written to '{self.ledger.file.path}' ({error}); training goes on, and"
                    " recording too once there is room"
                )
                if self._stopping.is_set():
                    return False
                self._stopping.wait(self.ledger.limits.retry)
            else:
                return True

    def _warn(self, message: str) -> None:
        """Once, and without raising, whatever the user made of warnings."""
        if self._warned:
            return
        self._warned = True
        warn_user(message)
