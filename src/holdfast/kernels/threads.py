"""Runs native code on several threads: on PyTorch's own team where its OpenMP can be had, else on a pool of ours.

PyTorch's threads wait for work by turning in a loop: a second set of threads would have to fight them for the cores,
and is woken in 60 to 100 µs instead of 5. Numba's threading layers are not used: a data loader's forked worker would
die of the one, and two Python threads at once abort the process with the other.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch

_home = os.getpid()
_lock = Lock()
_pool: ThreadPoolExecutor | None = None


def run(function: int, argument: int, threads: int) -> None:
    """Call native code from several threads at once, and wait for all of them.

    Python's lock is not held meanwhile. A forked child works alone: threads do not survive a fork.

    Args:
        function: its address; it takes one int64, and shares its work among however many callers there are.
        argument: what it is given.
        threads: how many at most; never more than `torch.get_num_threads()`.
    """
    threads = min(threads, torch.get_num_threads()) if threads > 1 and os.getpid() == _home else 1
    if threads == 1:
        _callable(function)(argument)
    elif (team := _team()) is not None:
        team(function, argument, threads, 0)
    else:
        _run_on_pool(_callable(function), argument, threads)


def call(function: int, argument: int) -> None:
    """Call native code that takes less than a millisecond.

    Python's lock is kept: whoever gives it up for so short a time may wait five milliseconds to have it back, where
    another thread of Python's has work to do.

    Args:
        function: its address; it takes one int64.
        argument: what it is given.
    """
    _prompt(function)(argument)


@cache
def _prompt(function: int) -> Any:
    return ctypes.PYFUNCTYPE(None, ctypes.c_int64)(function)


@cache
def _callable(function: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(function)


@cache
def _team() -> Any:
    """`GOMP_parallel` of the OpenMP that PyTorch has loaded; `None` where it uses another."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*")):
        try:
            found = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY).GOMP_parallel
        except (OSError, AttributeError):
            continue
        found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        found.restype = None
        return found
    return None


def _run_on_pool(function: Any, argument: int, threads: int) -> None:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="holdfast-norm")
    hands = [_pool.submit(function, argument) for _ in range(threads - 1)]
    try:
        function(argument)
    finally:
        wait(hands)
