"""Compiles the kernel in the background, once a machine; until it is there, plain PyTorch serves.

Compiled is in another process, which leaves its work in Numba's cache: for the half minute that it takes, Numba would
hold Python's lock for much of the time, and exchange the filters of `warnings` under the training's hands. Only where
there is no place for a cache, a thread of this process does it.

What a user may set, before the first figure: `HOLDFAST_KERNELS=reference` never compiles (no thread, no Numba, and
figures that do not depend on when the compiler was done), `HOLDFAST_KERNELS=compiled` waits for the compiler at the
first figure; `auto` is the default.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FORK_PATIENCE = 30.0
"""Seconds that a fork waits for the compiler."""

LOOK = 0.05
"""Seconds from one look at the compiling process to the next."""

_COMPILE = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
if hasattr(os, "nice"):
    os.nice(5)
from holdfast.kernels import block_cpu
block_cpu.build()
"""


class _Compiler:
    """One process's compiler: idle, at work in its thread, done, or failed."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.kernel: int | None = None
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
        try:
            with self.at_work:
                from holdfast.kernels import block_cpu

                missing = block_cpu.missing()
            if not missing or _compile_elsewhere():
                with self.at_work:
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


def _compile_elsewhere() -> bool:
    """Compile in a process of its own, and wait for it.

    Returns:
        Whether to go on: not so when the program has ended meanwhile; the process ends with it.
    """
    if "python" not in os.path.basename(sys.executable or "").lower():  # a frozen program would start itself
        return True
    command = [sys.executable, "-W", "ignore", "-c", _COMPILE, json.dumps(sys.path)]
    quiet: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        process = subprocess.Popen(command, **quiet)
    except (OSError, ValueError):  # no interpreter that could be started: then here
        return True
    while True:
        try:
            process.wait(LOOK)
            return True
        except subprocess.TimeoutExpired:
            if not threading.main_thread().is_alive():
                process.terminate()
                process.wait()
                return False


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


def kernel() -> int | None:
    """The compiled kernel's address; `None` while there is none. The first call starts the compiler."""
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
