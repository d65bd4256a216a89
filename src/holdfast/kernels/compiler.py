"""Compiles the kernel in the background, once a process; until it is there, plain PyTorch serves.

What a user may set, before the first figure: `HOLDFAST_KERNELS=reference` never compiles (no thread, no Numba, and
figures that do not depend on when the compiler was done), `HOLDFAST_KERNELS=compiled` waits for the compiler at the
first figure; `auto` is the default.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Kernel = Callable[..., Any]

FORK_PATIENCE = 30.0
"""Seconds that a fork waits for the compiler."""


class _Compiler:
    """One process's compiler: idle, at work in its thread, done, or failed."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.kernel: Kernel | None = None
        self.error: BaseException | None = None
        self.started = False
        self.finished = threading.Event()
        self.starting = threading.Lock()
        self.at_work = threading.Lock()
        self.postponed = 0

    def start(self) -> None:
        with self.starting:
            if self.started or _mode() == "reference" or self.process != os.getpid():
                return
            self.started = True
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._after_fork
            )
            # Not a daemon: a process that ends while LLVM is at work in another thread may crash on its way out.
            threading.Thread(target=self._work, name="holdfast-compiler").start()

    def _work(self) -> None:
        with self.at_work:
            try:
                from holdfast.kernels import block_cpu

                self.kernel = block_cpu.build()
            except Exception as error:  # whatever Numba stumbles on, the reference path goes on serving
                self.error = error
            finally:
                self.finished.set()

    def _before_fork(self) -> None:
        # A child forked in the middle of a compilation would find Numba's and the import system's locks held for
        # ever by a thread it does not have: its own first use of Numba would hang. So the fork waits.
        self._waited = self.at_work.acquire(timeout=FORK_PATIENCE)

    def _after_fork(self) -> None:
        if self._waited:
            self.at_work.release()

    _waited = False


def _mode() -> str:
    return os.environ.get("HOLDFAST_KERNELS", "auto")


_compiler = _Compiler()


def warm_up() -> None:
    """Start the compiler's thread, unless it was started, is switched off, or this is a forked child.

    Returns at once. A forked child (a data loader's worker) never starts a thread; it keeps a kernel that was ready
    before the fork.
    """
    if not _compiler.started:
        _compiler.start()


def wait(timeout: float | None = None) -> bool:
    """Start the compiler if need be and wait for it: for tests and benchmarks.

    Args:
        timeout: seconds; `None` waits as long as it takes.

    Returns:
        Whether the kernel is ready.
    """
    warm_up()
    if _compiler.started and _compiler.process == os.getpid():
        _compiler.finished.wait(timeout)
    return _compiler.kernel is not None


def kernel() -> Kernel | None:
    """The compiled kernel; `None` while there is none. The first call starts the compiler."""
    if _compiler.kernel is not None:
        return _compiler.kernel
    if not _compiler.started and not (_compiler.postponed and _mode() == "auto"):
        warm_up()
        if _mode() == "compiled":
            wait()
    return _compiler.kernel


@contextmanager
def postponed() -> Iterator[None]:
    """Start no compiler within: plain PyTorch reads one batch before Numba would have been loaded."""
    _compiler.postponed += 1
    try:
        yield
    finally:
        _compiler.postponed -= 1


def state() -> dict[str, Any]:
    """What `holdfast doctor` shows: whether the kernel is ready, and what went wrong if anything did."""
    return {
        "mode": _mode(),
        "started": _compiler.started,
        "ready": _compiler.kernel is not None,
        "error": None if _compiler.error is None else f"{type(_compiler.error).__name__}: {_compiler.error}",
    }
