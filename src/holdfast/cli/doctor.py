"""`holdfast doctor`: what this machine offers."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Annotated, Literal

import typer

from holdfast.cli.console import output, print_json

State = Literal["ok", "note", "bad"]

EXTRAS = {"scikit-learn": "holdfast demo", "pandas": "run.frame()"}
"""Optional packages and what needs them."""

LITTLE_DISK = 1 << 30
"""1 GiB: a run of 100 sites takes up to 16 KB a step, so 65,000 steps."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing about this machine.

    Args:
        name: what was looked at.
        value: what was found.
        state: `"bad"` where Holdfast cannot work, `"note"` where it works with less.
        remark: what that means, and what to type.
    """

    name: str
    value: str
    state: State = "ok"
    remark: str = ""


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Say what this machine offers.

    Versions, devices, threads, the compiled kernel, disk, optional packages.
    Exit code 0: Holdfast can work here; 1: something that it needs is missing.
    """
    checks = [check_python(), *check_torch(), check_kernel(), check_sqlite(), check_disk(Path.cwd()), *check_extras()]
    fit = all(check.state != "bad" for check in checks)
    if as_json:
        print_json({"fit": fit, "checks": [asdict(check) for check in checks]})
    else:
        _show(checks)
    if not fit:
        raise typer.Exit(1)


def check_python() -> Check:
    """The interpreter."""
    return Check("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def check_torch() -> list[Check]:
    """PyTorch, its devices and its threads."""
    import torch

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [
        Check("holdfast", version("holdfast")),
        Check("torch", torch.__version__),
        Check("devices", ", ".join(devices)),
        Check("threads", f"{torch.get_num_threads()} for torch, {_cores()} cores for this process"),
    ]


def check_kernel(timeout: float = 60.0) -> Check:
    """Whether the compiled statistics kernel is ready, compiling it if need be.

    Args:
        timeout: seconds to wait for it.

    Returns:
        Ready, or why not; Holdfast then works through plain PyTorch.
    """
    from holdfast.kernels.compiler import state, wait

    started = perf_counter()
    if wait(timeout):
        return Check("kernel", f"compiled for this machine in {perf_counter() - started:.1f} s")
    found = state()
    if found["mode"] == "reference":
        return Check("kernel", "plain PyTorch", "note", "HOLDFAST_KERNELS=reference asks for it")
    why = found["error"] or f"not compiled after {timeout:g} s"
    return Check("kernel", "plain PyTorch", "note", f"slower, the same figures ({why})")


def check_sqlite() -> Check:
    """The database library that keeps the runs; 3.24 is the first with UPSERT."""
    if sqlite3.sqlite_version_info < (3, 24):
        return Check("sqlite", sqlite3.sqlite_version, "bad", "3.24 or newer is needed: take a newer Python")
    return Check("sqlite", sqlite3.sqlite_version)


def check_disk(folder: Path) -> Check:
    """Free space and the right to write in a folder.

    Args:
        folder: where runs would go.

    Returns:
        How much is free.
    """
    free = shutil.disk_usage(folder).free
    value = f"{free / 2**30:,.1f} GiB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check("disk", value, "note", "you may not write here: name another folder, as in --out DIR")
    if free < LITTLE_DISK:
        return Check("disk", value, "note", "a long run may fill it")
    return Check("disk", value)


def check_extras() -> list[Check]:
    """Optional packages."""
    checks = []
    for package, use in EXTRAS.items():
        try:
            checks.append(Check(package, version(package)))
        except PackageNotFoundError:
            checks.append(Check(package, "not installed", "note", f"{use} needs it: pip install 'holdfast[all]'"))
    return checks


def _cores() -> int:
    """Cores this process may use, not those the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _show(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    marks: dict[State, tuple[str, str]] = {
        "ok": ("ok", "green"),
        "note": ("less", "yellow"),
        "bad": ("bad", "bold red"),
    }
    for check in checks:
        remark = f"{check.value}: {check.remark}" if check.remark else check.value
        table.add_row(check.name, Text(*marks[check.state]), Text(remark))
    output().print(table)
