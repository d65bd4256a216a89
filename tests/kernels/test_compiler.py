"""The background compiler, in processes of its own."""

import os
import subprocess
import sys
import threading

import pytest

from holdfast.kernels import block_cpu, compiler


def _python(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


BLOCK = """
import os, sys, threading, time
import torch
from holdfast.kernels import compiler
from holdfast.kernels.dispatch import summarise_block
x = torch.ones(4, 3, 2)
"""


def _says(code, **environment):
    done = _python(BLOCK + code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_loads_no_numba():
    assert _says("print('numba' in sys.modules, threading.active_count())") == ["False", "1"]


def test_the_first_figure_does_not_wait():
    code = "summarise_block(x, 0, 1.0); print(compiler._compiler.started, compiler._compiler.kernel is None)\n"
    assert _says(code + "print(compiler.wait(200.0))") == ["True", "True", "True"]


def test_compiling_leaves_the_streams_of_training_alone():
    pytest.importorskip("colorama", reason="without colorama Numba has nothing to exchange them with")
    code = """
import types
class Watched(types.ModuleType):
    def __setattr__(self, name, value):
        if name in ("stdout", "stderr"):
            exchanged.append(name)
        super().__setattr__(name, value)
exchanged = []
from holdfast.kernels import native_cpu
import numba
sys.__class__ = Watched
try:
    numba.njit(lambda x: x + "a")(1)  # no overload fits: an error is worded for each
except numba.core.errors.TypingError:
    print("worded", *exchanged)
"""
    assert _says(code) == ["worded"]


def test_reference_mode_starts_no_thread():
    code = "summarise_block(x, 0, 1.0); print(threading.active_count(), 'numba' in sys.modules, compiler.wait(1.0))"
    assert _says(code, HOLDFAST_KERNELS="reference") == ["1", "False", "False"]


def test_postponed_starts_with_the_first_figure_after_it():
    code = "with compiler.postponed(): summarise_block(x, 0, 1.0); print(threading.active_count())\n"
    assert _says(code + "summarise_block(x, 0, 1.0); print(compiler._compiler.started)") == ["1", "True"]


def test_a_preflight_loads_neither_compiler_nor_statistics_library():
    code = "import holdfast as hf; net = torch.nn.Linear(2, 2); batch = torch.randn(8, 2), torch.randn(8, 2)\n"
    code += "hf.preflight(net, batch, torch.nn.functional.mse_loss); print('numba' in sys.modules)\n"
    assert _says(code + "print('scipy.stats' in sys.modules)") == ["False", "False"]


def test_compiled_mode_waits():
    assert _says("summarise_block(x, 0, 1.0); print(compiler.state()['ready'])", HOLDFAST_KERNELS="compiled") == [
        "True"
    ]


CHILD = """
def child():
    summarise_block(x, 0, 1.0)
    import numba
    assert numba.njit(lambda a: a + 1)(1) == 2   # hangs where the parent's compiler held a lock when we were forked
    print(compiler._compiler.kernel is not None, threading.active_count(), flush=True)

def fork():
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_in_the_middle_of_compiling_neither_hangs_nor_starts_a_thread():
    said = _says(CHILD + "compiler.warm_up(); time.sleep(0.05); fork(); print(compiler.wait(200.0))")
    assert said == ["True", "1", "True"]  # the fork waited, so the child has the kernel


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_before_the_compiler_started_uses_the_reference():
    assert _says(CHILD + "fork()") == ["False", "1"]


def test_an_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*args, cache=False, **kwargs):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: calls.append(function) or function

    calls = []
    monkeypatch.setattr(block_cpu, "njit", refuse)
    assert callable(block_cpu.build())
    assert len(calls) == 1


def test_a_failing_compiler_is_reported_and_leaves_the_reference(monkeypatch):
    def fail():
        raise ValueError("no LLVM today")

    fresh = compiler._Compiler()
    monkeypatch.setattr(block_cpu, "build", fail)
    monkeypatch.setattr(compiler, "_compiler", fresh)
    assert not compiler.wait(10.0)
    assert compiler.kernel() is None
    assert compiler.state() == {"mode": "auto", "started": True, "ready": False, "error": "ValueError: no LLVM today"}


def test_the_compiler_starts_once(monkeypatch):
    running = threading.Event()
    builds = []
    fresh = compiler._Compiler()
    monkeypatch.setattr(block_cpu, "build", lambda: builds.append(1) or running.wait(10) or len)
    monkeypatch.setattr(compiler, "_compiler", fresh)
    callers = [threading.Thread(target=compiler.warm_up) for _ in range(8)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    running.set()
    fresh.finished.wait(10)
    assert builds == [1]
