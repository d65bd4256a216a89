from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import Result

from holdfast.cli import doctor as module
from holdfast.kernels import compiler


def test_everything_is_named_and_json_is_valid(run: Callable[..., Result]) -> None:
    result = run("doctor", "--json")
    told = json.loads(result.stdout)
    names = [check["name"] for check in told["checks"]]
    expected = [
        "python",
        "holdfast",
        "torch",
        "devices",
        "threads",
        "kernel",
        "sqlite",
        "disk",
        "scikit-learn",
        "pandas",
    ]
    assert names == expected
    assert told["fit"] is True
    assert result.exit_code == 0
    assert all(check["value"] for check in told["checks"])
    plain = run("doctor").stdout
    assert all(name in plain for name in expected)


def test_a_missing_extra_says_what_needs_it_and_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(module, "version", version)
    check = module.check_extras()[0]
    assert (check.state, check.value) == ("note", "not installed")
    assert check.remark == "holdfast demo needs it: pip install 'holdfast[all]'"


def test_an_old_sqlite_makes_the_machine_unfit(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 7, 17))
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["fit"] is False


def test_little_room_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 << 20))
    assert module.check_disk(tmp_path).state == "note"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 << 30))
    assert module.check_disk(tmp_path) == module.Check("disk", f"5.0 GiB free in {tmp_path}")


@pytest.mark.parametrize(
    ("mode", "error", "says"),
    [
        ("reference", None, "HOLDFAST_KERNELS=reference asks for it"),
        ("auto", "ImportError: no numba", "slower, the same figures (ImportError: no numba)"),
        ("auto", None, "slower, the same figures (not compiled after 0 s)"),
    ],
)
def test_a_kernel_that_is_not_ready_says_why(
    monkeypatch: pytest.MonkeyPatch, mode: str, error: str | None, says: str
) -> None:
    monkeypatch.setattr(compiler, "wait", lambda timeout: False)
    monkeypatch.setattr(compiler, "state", lambda: {"mode": mode, "error": error})
    check = module.check_kernel(0.0)
    assert (check.state, check.remark) == ("note", says)
