"""`holdfast explain NAME`: the card of a rule, a measure, a treatment or a normaliser."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli.console import output, print_json


def explain(
    name: Annotated[
        str | None,
        typer.Argument(help="Of a rule, measure, treatment or normaliser; without one, all names.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the card of a rule, measure, treatment or normaliser.

    What it sees, why it matters, when it is wrong, what to do.
    """
    from holdfast.api import card_names
    from holdfast.api import explain as card

    if name is None:
        _list(card_names(), as_json=as_json)
        return
    text = card(name)
    if as_json:
        print_json({"name": name, "card": text})
    else:
        output().print(text, markup=False, soft_wrap=True)


def _list(families: dict[str, list[str]], *, as_json: bool) -> None:
    if as_json:
        print_json(families)
        return
    console = output()
    for family, names in families.items():
        console.print(family, style="bold")
        console.print(f"  {', '.join(names)}", markup=False)
