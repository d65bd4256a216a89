from __future__ import annotations

import json
from collections.abc import Callable

from typer.testing import Result

from holdfast.api import card_names, explain


def test_a_card_is_printed_as_it_is(run: Callable[..., Result]) -> None:
    result = run("explain", "saturated-units")
    assert result.exit_code == 0
    assert result.stdout.strip() == explain("saturated-units").strip()
    assert "When it is wrong:" in result.stdout


def test_every_name_listed_has_a_card(run: Callable[..., Result]) -> None:
    families = json.loads(run("explain", "--json").stdout)
    assert families == card_names()
    plain = run("explain").stdout
    for names in families.values():
        for name in names:
            assert name in plain
            assert explain(name).strip()


def test_json_holds_name_and_card(run: Callable[..., Result]) -> None:
    told = json.loads(run("explain", "insert-norm", "--json").stdout)
    assert told == {"name": "insert-norm", "card": explain("insert-norm")}


def test_an_unknown_name_suggests_the_nearest(run: Callable[..., Result]) -> None:
    result = run("explain", "saturated-unit")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "got 'saturated-unit'; type: holdfast explain saturated-units" in result.stderr
