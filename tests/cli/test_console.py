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


def test_without_a_terminal_the_table_still_has_room(capsys: pytest.CaptureFixture[str]) -> None:
    output().print("x" * (WIDTH - 1), style="bold red")
    assert capsys.readouterr().out == "x" * (WIDTH - 1) + "\n"  # neither wrapped nor coloured
