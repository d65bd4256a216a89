"""`Arm`: one network under one monitor in a process of its own, trained block by block as it is told.

In one process the arms would pay for each other: hooks on `backward()` and on every optimiser, threads that write, a
heap that somebody else made fragments of. And the peak of memory is a process's.
"""

from __future__ import annotations

import gc
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

UNCLOCKED = 3
"""Steps at the start of a block that do not count, fewer if they are slow: the caches were another arm's meanwhile."""
BUDGETED = ("auto", "every step", "every step, exact")
"""Monitors of ours that do a part of their work, or all of it, within a budget."""
SETTLING = 201
"""Steps before the first block of those: until then they learn what things cost."""
FEW = 5
"""Of all others."""


class Arm:
    """The near end of the process.

    Args:
        workload: its key in `workloads`.
        monitor: its name in `monitors`.
        seed: of weights and data.
        threads: of PyTorch.
        warm_up: steps before the first block; as many as the monitor asks for when `None`.

    Raises:
        RuntimeError: (from each method) the process failed; the text is the exception's.
    """

    def __init__(self, workload: str, monitor: str, *, seed: int, threads: int, warm_up: int | None = None) -> None:
        context = _context()
        self._near, far = context.Pipe()
        steps = (SETTLING if monitor in BUDGETED else FEW) if warm_up is None else warm_up
        self._process = context.Process(target=_serve, args=(far, workload, monitor, seed, threads, steps), daemon=True)
        self._process.start()
        far.close()

    def ready(self) -> None:
        """Wait until the network is warm."""
        self._answer()

    def block(self, seconds: float) -> tuple[float, float]:
        """Train for so long.

        Args:
            seconds: at least; the last step is finished.

        Returns:
            Seconds that a step took, by the clock and of processors (of all threads).
        """
        self._near.send(seconds)
        return tuple(self._answer())

    def end(self) -> dict[str, Any]:
        """End the process.

        Returns:
            `"peak"`: of its memory, in bytes; `"steps"`; `"account"`: how many of them had statistics and probes, where
                the monitor is ours.
        """
        self._near.send(None)
        found = self._answer()
        self._process.join(60)
        return dict(found)

    def kill(self) -> None:
        """End the process in any state."""
        self._process.kill()
        self._process.join(60)

    def _answer(self) -> Any:
        try:
            answer = self._near.recv()
        except EOFError:
            self._process.join(60)
            raise RuntimeError(f"the process ended with code {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            self._process.join(60)
            raise RuntimeError(f"{type(answer).__name__}: {answer}")
        return answer


def _context() -> Any:
    """Processes come from one that has imported PyTorch, all of it that training needs (6 s each otherwise)."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo"])
    return context


def peak_memory() -> int:
    """Greatest resident size of this process so far, in bytes."""
    try:
        # Not `ru_maxrss`, which starts from the parent's size where a process was forked and replaced.
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def _serve(far: Connection, workload: str, monitor: str, seed: int, threads: int, warm_up: int) -> None:
    try:
        _settle_in(seed, threads)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            _train(far, workload, monitor, warm_up, Path(folder) / "run")
    except Exception as exception:
        far.send(RuntimeError(f"{type(exception).__name__}: {exception}"))


def _settle_in(seed: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(seed)


def _train(far: Connection, key: str, monitor: str, warm_up: int, folder: Path) -> None:
    import torch
    from parts.monitors import MONITORS
    from parts.workloads import workload
    from torch.nn import functional as F

    chosen = workload(key)
    model, batches = chosen.build(), chosen.batches()
    probe = chosen.draw()[:64]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    done = 0
    with MONITORS[monitor](model, optimizer, probe, folder) as attached:

        def step() -> None:
            nonlocal done
            inputs, labels = batches[done % len(batches)]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs).flatten(0, -2), labels)
            loss.backward()
            optimizer.step()
            attached.after(loss)
            done += 1

        for _ in range(warm_up):
            step()
        attached.settle()
        far.send("ready")
        while (seconds := far.recv()) is not None:
            gc.collect()
            begin = time.perf_counter()
            for _ in range(UNCLOCKED):
                if time.perf_counter() - begin < seconds / 5:
                    step()
            before, begin, busy = done, time.perf_counter(), time.process_time()
            while (took := time.perf_counter() - begin) < seconds or done == before:
                step()
            busy = time.process_time() - busy
            attached.settle()  # what is written late must not be paid by the next arm
            far.send((took / (done - before), busy / (done - before)))
        peak = peak_memory()
    far.send({"peak": peak, "steps": done, "account": _account(folder) if attached.records else None})


def _account(folder: Path) -> tuple[int, int]:
    """Steps with statistics, and with probes, by a run's own account."""
    import holdfast as hf

    with hf.Run(folder) as run:
        account = run.history.events("cadence")[-1].data
    return int(account["observed"]), int(account["probed"])
