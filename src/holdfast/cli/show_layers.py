"""The table of layers in a terminal: one row a layer, each figure with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.figures.wording import number, shortened
from holdfast.report.layers import LayerRow, layer_rows

Form = Literal["interval", "floor", "share", "plain"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: which reading of a row, under what head, with which part of its uncertainty.

    Args:
        field: of `LayerRow`.
        head: at most two lines.
        form: `"interval"` and `"floor"` print that beside the value, `"share"` prints per cent.
    """

    field: str
    head: str
    form: Form


COLUMNS = (
    Column("drift", "parameter drift\nlag 1", "interval"),
    Column("drift_100", "parameter drift\nlag 100", "interval"),
    Column("observed_drift", "observed drift\n(noise floor)", "floor"),
    Column("saturated", "satu-\nrated", "share"),
    Column("dead", "dead\nunits", "share"),
    Column("backward_gain", "gradient\ngain", "plain"),
)
ALWAYS = ("drift", "drift_100", "observed_drift", "backward_gain")
"""Shown even when empty; the others only where a layer has one."""


def show_layers(console: Console, history: History) -> None:
    """Print the layers in the order of execution, each with its latest readings.

    Args:
        console: where to.
        history: a run.
    """
    rows = layer_rows(history)
    columns = [column for column in COLUMNS if column.field in ALWAYS or any(_of(row, column) for row in rows)]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("layer\n", no_wrap=True)
    for column in columns:
        table.add_column(column.head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(shortened(row.label), *(cell(_of(row, column), column.form, row) for column in columns))
    console.print(Text("Layers", style="bold"), Text(_step(rows), style="dim"))
    console.print(table)
    console.print(Text(_legend(rows), style="dim"))


def cell(reading: Reading | None, form: Form, row: LayerRow) -> Text:
    """What stands in a cell.

    Args:
        reading: the figure, `None` where there is none.
        form: how much of its uncertainty to print.
        row: of the cell: a collapsed input explains a missing drift.

    Returns:
        Value with interval or floor; "within noise" below the floor; "collapsed" or a dash where there is none.
    """
    if reading is None:
        gone = form in ("interval", "floor") and row.collapsed is not None and row.collapsed.value > 0.5
        return Text("collapsed" if gone else "–", style="dim")
    value = reading.value
    if not math.isfinite(value):
        return Text(number(value), style="red")
    if form == "share":
        return Text(f"{value:.0%}", style="" if value else "dim")
    if form == "floor" and reading.noise_floor is not None:
        return Text(
            f"{number(value, 2)} ({number(reading.noise_floor, 2)})", style="" if reading.above_noise else "dim"
        )
    if not reading.above_noise:
        return Text("within noise", style="dim")
    if form == "interval" and reading.interval is not None:
        low, high = reading.interval
        return Text(f"{number(value, 2)} [{number(low, 2)}, {number(high, 2)}]")
    return Text(number(value, 2))


def layers_as_dicts(history: History) -> list[dict[str, Any]]:
    """The rows as plain values for JSON.

    Args:
        history: a run.

    Returns:
        One object a layer; `null` for a reading that it has not.
    """
    return [
        {
            "layer": row.label,
            "kind": row.kind,
            **{
                each.name: None if (reading := getattr(row, each.name)) is None else reading.as_dict()
                for each in fields(LayerRow)
                if each.name not in ("site", "label", "kind")
            },
        }
        for row in layer_rows(history)
    ]


def _of(row: LayerRow, column: Column) -> Reading | None:
    reading: Reading | None = getattr(row, column.field)
    return reading


def _step(rows: list[LayerRow]) -> str:
    steps = [row.drift.step for row in rows if row.drift is not None]
    return f"(latest readings, step {max(steps)})" if steps else ""


def _legend(rows: list[LayerRow]) -> str:
    samples = sorted({row.drift.n for row in rows if row.drift is not None})
    count = f" n = {samples[-1]} samples." if samples else ""
    return (
        "Drift of each layer's input in standard deviations of the feature at the reference time [95 % interval]."
        f"{count} Parameter drift: same samples, moved parameters. Observed drift: other samples too; up to its"
        " floor, other samples alone explain it. Gradient gain: norm of the gradient leaving the layer ÷ entering it."
    )
