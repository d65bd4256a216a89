"""The background compiler, in processes of its own."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from holdfast.kernels import block_cpu, compiler, native_cpu


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
    # Loaded from the cache, the child has the kernel, for the fork waited; compiled by another process, it has not.
    assert said in (["True", "1", "True"], ["False", "1", "True"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_before_the_compiler_started_uses_the_reference():
    assert _says(CHILD + "fork()") == ["False", "1"]


FRESH = """
import pathlib, warnings
place = pathlib.Path(os.environ["NUMBA_CACHE_DIR"])
def compiled():
    return sorted({path.name.split(".")[1].split("-")[0] for path in place.rglob("*.nbi")})
"""


def test_another_process_compiles_before_this_one_loads(monkeypatch, tmp_path):
    done = tmp_path / "compiled"
    monkeypatch.setattr(compiler, "_COMPILE", f"import pathlib; pathlib.Path({str(done)!r}).write_text('')")
    monkeypatch.setattr(block_cpu, "missing", lambda: True)
    monkeypatch.setattr(block_cpu, "build", lambda: 7 if done.exists() else 0)
    monkeypatch.setattr(compiler, "_compiler", compiler._Compiler())
    assert compiler.wait(20.0)
    assert compiler.kernel() == 7


@pytest.mark.parametrize("executable", ["/opt/app/trainer", "", None])
def test_a_program_that_is_no_interpreter_is_not_started(monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(block_cpu, "missing", lambda: True)
    monkeypatch.setattr(block_cpu, "build", lambda: 7)
    monkeypatch.setattr(compiler, "_compiler", compiler._Compiler())
    assert compiler.wait(20.0)
    assert compiler.kernel() == 7


@pytest.mark.slow
def test_another_process_compiles_and_the_warnings_of_this_one_are_heard(tmp_path):
    code = """
from holdfast.kernels import native_cpu
def refuse(*_):
    raise AssertionError("compiled here")
import numba.core.typeinfer
numba.core.typeinfer.TypeInferer.propagate = refuse
compiler.warm_up()
heard = 0
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for k in range(1000):
        warnings.warn(str(k))
        if compiler._compiler.finished.wait(0.1):
            break
print(compiler.state()["ready"], len(caught) == k + 1, *compiled())
"""
    said = _says(FRESH + code, NUMBA_CACHE_DIR=str(tmp_path))
    assert said == ["True", "True", "_look"]


def _at_work(cache):
    """Processes that compile into a cache."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"NUMBA_CACHE_DIR={cache}".encode() in (process / "environ").read_bytes():
                found.append(process)
    return found


def test_a_program_that_ends_first_does_not_wait_for_the_compiler(tmp_path):
    code = """
compiler.warm_up()
began = time.monotonic()
while compiler._compiler.finished.wait(0.01) is False and time.monotonic() - began < 3: pass
print(compiler.state()["ready"], os.getpid())
"""
    said = _says(FRESH + code, NUMBA_CACHE_DIR=str(tmp_path))
    assert said[0] == "False"
    assert not list(tmp_path.rglob("*.nbi"))
    mine = f"PPid:\t{said[1]}\n"  # nobody compiles on behind its back
    assert not any(mine in path.read_text() for path in Path("/proc").glob("[0-9]*/status") if path.exists())


def test_an_unwritable_cache_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*args, cache=False, **kwargs):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: calls.append(function) or SimpleNamespace(address=7)

    calls = []
    monkeypatch.setattr(native_cpu, "cfunc", refuse)
    monkeypatch.setattr(block_cpu, "njit", refuse)
    assert not block_cpu.missing()  # no other process could leave anything
    assert block_cpu.build() == 7
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
    monkeypatch.setattr(block_cpu, "build", lambda: builds.append(1) or (running.wait(10) and 1))
    monkeypatch.setattr(compiler, "_compiler", fresh)
    callers = [threading.Thread(target=compiler.warm_up) for _ in range(8)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    running.set()
    fresh.finished.wait(10)
    assert builds == [1]
