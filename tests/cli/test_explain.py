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


def test_a_normaliser_has_two_names_a_formula_and_a_picture(run: Callable[..., Result]) -> None:
    card = run("explain", "group").stdout
    assert card == run("explain", "GroupNorm").stdout
    assert "When it is wrong:" in card
    assert "y = γ_c · (x − μ_ng) / √(σ²_ng + ε) + β_c\n" in card
    assert card.rstrip().endswith("    samples    ■ □ □ □\n    channels   ■ ■ ■ □ □ □\n    positions  ■ ■ ■ ■ ■ ■")
    result = run("explain", "gruop")
    assert result.exit_code == 2
    assert "holdfast explain group" in result.stderr


def test_json_holds_name_and_card(run: Callable[..., Result]) -> None:
    told = json.loads(run("explain", "insert-norm", "--json").stdout)
    assert told == {"name": "insert-norm", "card": explain("insert-norm")}


def test_an_unknown_name_suggests_the_nearest(run: Callable[..., Result]) -> None:
    result = run("explain", "saturated-unit")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "got 'saturated-unit'; type: holdfast explain saturated-units" in result.stderr
