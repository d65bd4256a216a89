from __future__ import annotations

import json

import pytest

from holdfast.cli.console import WIDTH, note, output, print_json


def test_json_is_ascii_and_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"unit": "σ"})
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text) == {"unit": "σ"}
    with pytest.raises(ValueError, match="JSON compliant"):
        print_json({"value": float("nan")})


def test_remarks_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    note("[bold]as it is[/bold]")
    assert capsys.readouterr() == ("", "[bold]as it is[/bold]\n")


def test_without_a_terminal_the_table_still_has_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    output().print("x" * (WIDTH - 1), style="bold red")
    assert capsys.readouterr().out == "x" * (WIDTH - 1) + "\n"  # neither wrapped nor coloured


def test_columns_asked_for_are_kept_to(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    output().print("word " * 6)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 20
