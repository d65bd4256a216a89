from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

Process = Callable[..., subprocess.CompletedProcess[str]]


def test_the_page_is_written_and_only_its_path_is_printed(demo_folder: Path, process: Process, tmp_path: Path) -> None:
    done = process("report", demo_folder / "runs" / "demo-suffering", "-o", "page.html")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).resolve() == tmp_path / "page.html" or done.stdout == "page.html\n"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "sigmoid10" in page


def test_no_place_for_the_page_is_one_sentence(demo_folder: Path, run: Callable[..., Result]) -> None:
    result = run("report", demo_folder / "runs" / "demo-suffering", "-o", "no/page.html")
    assert result.exit_code == 2
    assert result.stderr.startswith("holdfast: expected a path where the report can be written; got 'no/page.html'")


def test_no_run_is_one_sentence(run: Callable[..., Result]) -> None:
    result = run("report", "gone")
    assert result.exit_code == 2
    assert "'gone', which does not exist" in result.stderr
