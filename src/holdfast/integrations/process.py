"""`WatchedProcess`: a watch on every model that this process trains, without a change to its code."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from holdfast.core.warn import warn_user
from holdfast.integrations.options import Options
from holdfast.integrations.streams import Streams
from holdfast.live.discover import Registry
from holdfast.monitor.watch import Watch
from holdfast.store.folder import run_files
from holdfast.store.shared import SharedWriter
from holdfast.store.writer import RunWriter


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a watched process left behind.

    Args:
        folder: of the run.
        attempts: recorded in it by this process or its children, the one of this process first.
        built: optimisers that were made.
        unfound: kind of an optimiser that stepped although no model of its parameters was found.
        left_out: models beyond the most that one run takes.
    """

    folder: Path
    attempts: tuple[int, ...] = ()
    built: int = 0
    unfound: str | None = None
    left_out: int = 0


class WatchedProcess:
    """Wraps what PyTorch calls when an optimiser is made, steps, or children are spawned.

    An error of ours is warned of once and never reaches the caller. In a forked child nothing happens.

    Args:
        options: how to watch.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._pid = os.getpid()
        self._before = _attempts(options.folder)
        self._shared = SharedWriter(self._open_writer)
        self._registry = Registry()
        self._streams = Streams(self._open_watch, self._registry)
        self._met: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()  # → whether found
        self._built = 0
        self._unfound: str | None = None
        self._failed = False
        self._rank: int | None = None  # known when the run is opened

    def install(self) -> None:
        """Begin: from now on every optimiser's models are watched."""
        initialise = Optimizer.__init__

        @functools.wraps(initialise)
        def __init__(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            initialise(optimizer, *args, **kwargs)
            self._guard(self._made, optimizer)

        Optimizer.__init__ = __init__  # type: ignore[method-assign, assignment]
        # Optimisers that were copied or unpickled, and those whose model came after them.
        register_optimizer_step_post_hook(self._stepped)
        self._watch_children()

    def close(self) -> None:
        """End all watches and write what is still on its way."""
        if os.getpid() == self._pid:
            self._guard(self._streams.close)
            self._guard(self._shared.close)

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all that train together."""
        return (rank() if self._rank is None else self._rank) == 0

    def outcome(self) -> Outcome:
        """What there is to report, after `close`."""
        attempts = sorted(_attempts(self._options.folder) - self._before)
        if self._shared.writer is not None:
            own = self._shared.writer.attempt
            attempts = [own, *(each for each in attempts if each != own)]
        return Outcome(self._options.folder, tuple(attempts), self._built, self._unfound, self._streams.left_out)

    def _guard(self, function: Callable[..., Any], *args: Any) -> None:
        if os.getpid() != self._pid:
            return
        try:
            function(*args)
        except Exception as error:
            if not self._failed:
                self._failed = True
                warn_user(f"holdfast: {type(error).__name__}: {error} (the script goes on, and is not all watched)")

    def _made(self, optimizer: Optimizer) -> None:
        self._built += 1
        self._met[optimizer] = self._streams.add(optimizer)

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._guard(self._look_again, optimizer)

    def _look_again(self, optimizer: Optimizer) -> None:
        if self._met.get(optimizer):
            return
        found = self._streams.add(optimizer)
        self._met[optimizer] = True  # asked for the last time
        if not found:
            self._unfound = type(optimizer).__name__

    def _open_watch(self, model: nn.Module, optimizer: Optimizer, name: str) -> Watch:
        options = self._options
        return Watch(
            model,
            optimizer,
            self._shared.sink,
            name=str(options.folder),
            stream=name,
            probe=options.probe,
            every=options.every,
            budget=options.budget,
            folder=options.folder,
            guest=True,
        )

    def _open_writer(self) -> RunWriter:
        self._rank = rank()
        writer = RunWriter(self._options.folder, rank=self._rank)
        atexit.register(self.close)  # after the writer's own, which must run later
        return writer

    def _watch_children(self) -> None:
        """Let the children of `torch.multiprocessing.spawn` be watched too."""
        spawn = sys.modules.get("torch.multiprocessing.spawn")  # the attribute of that name is a function
        if spawn is None:
            return
        start = spawn.start_processes

        @functools.wraps(start)
        def start_processes(fn: Any, *args: Any, **kwargs: Any) -> Any:
            ours = os.getpid() == self._pid
            return start(_Carried(fn, self._options) if ours else fn, *args, **kwargs)

        for place in (spawn, torch.multiprocessing):
            vars(place)["start_processes"] = start_processes


class _Carried:
    """A function on its way to a child process; there it is itself again, and the watch is installed."""

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        self.function = function
        self.options = options

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.function, self.options)

    def __call__(self, *args: Any) -> Any:
        """Run in a forked child, to which nothing is pickled and which ends without its exit handlers."""
        process = WatchedProcess(self.options)
        process.install()
        try:
            return self.function(*args)
        finally:
            process.close()


def _arrived(function: Callable[..., Any], options: Options) -> Callable[..., Any]:
    WatchedProcess(options).install()
    return function


def rank() -> int:
    """This process's number among those that train together; 0 when it trains alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    said = os.environ.get("RANK", "")
    return int(said) if said.isdecimal() else 0


def _attempts(folder: Path) -> set[int]:
    """The attempts of rank 0 that a folder holds."""
    return {each.attempt for each in run_files(folder) if each.rank == 0} if folder.is_dir() else set()
