"""The table of layers in a terminal: one row a layer, each figure with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.core.finding import Diagnosis
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.figures.wording import number, shortened
from holdfast.report.believable import Believable
from holdfast.report.layers import LayerRow, layer_rows

Form = Literal["interval", "floor", "share", "plain"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: which reading of a row, under what head, with which part of its uncertainty.

    Args:
        field: of `LayerRow`.
        head: of two lines; `{lag}` becomes the optimiser steps between the two states compared.
        form: `"interval"` and `"floor"` print that beside the value, `"share"` prints per cent.
        always: shown even when no layer has one.
        lag: in the head when no layer has a reading.
    """

    field: str
    head: str
    form: Form
    always: bool = True
    lag: str = ""


COLUMNS = (
    Column("drift", "parameter drift\nlag {lag}", "interval", lag="1"),
    Column("drift_100", "parameter drift\nlag {lag}", "interval", lag="100"),
    Column("observed_drift", "observed drift\nlag {lag} (floor)", "floor", lag="–"),
    Column("saturated", "satu-\nrated", "share", always=False),
    Column("dead", "dead\nunits", "share", always=False),
    Column("backward_gain", "grad.\ngain", "plain"),
)


def show_layers(console: Console, history: History, diagnosis: Diagnosis) -> None:
    """Print the layers in the order of execution, each with its latest readings.

    The intervals are left out where the terminal is too narrow for them.

    Args:
        console: where to.
        history: a run.
        diagnosis: of that run: a layer whose signal collapsed has no drift figure.
    """
    view = Believable(history, diagnosis)
    rows, collapsed = layer_rows(view), view.collapsed
    columns = [column for column in COLUMNS if column.always or any(_of(row, column) for row in rows)]
    endless = console.options.update(width=10_000)  # a measurement stops at the width there is
    table = _table(rows, columns, collapsed, gap=2)
    for gap, brief in ((1, False), (1, True)):
        if console.measure(table, options=endless).maximum <= console.width:
            break
        table = _table(rows, columns, collapsed, gap=gap, brief=brief)
    console.print(Text.assemble(("Layers  ", "bold"), (_when(rows), "dim")))
    console.print(table)
    console.print(Text(_legend(rows), style="dim"))


def cell(reading: Reading | None, form: Form, *, collapsed: bool = False, brief: bool = False) -> Text:
    """What stands in a cell.

    Args:
        reading: the figure, `None` where there is none.
        form: how much of its uncertainty to print.
        collapsed: whether the layer's signal did: that explains a missing drift.
        brief: without interval and floor.

    Returns:
        Value with interval or floor; "within noise" below the floor; "collapsed" or a dash where there is none.
    """
    if reading is None:
        return Text("collapsed" if collapsed and form in ("interval", "floor") else "–", style="dim")
    value = reading.value
    if not math.isfinite(value):
        return Text(number(value), style="red")
    if form == "share":
        return Text(f"{value:.0%}".replace("%", " %"), style="" if value else "dim")
    if form == "floor" and reading.noise_floor is not None and not brief:
        floor = number(reading.noise_floor, 2)
        return Text(f"{number(value, 2)} ({floor})", style="" if reading.above_noise else "dim")
    if not reading.above_noise:
        return Text("within noise", style="dim")
    if form == "interval" and reading.interval is not None and not brief:
        return Text(_with_interval(value, *reading.interval))
    return Text(number(value, 2))


def layers_as_dicts(history: History, diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """The rows as plain values for JSON.

    Args:
        history: a run.
        diagnosis: of that run.

    Returns:
        One object a layer; `null` for a reading that it has not.
    """
    view = Believable(history, diagnosis)
    readings = [each.name for each in fields(LayerRow) if each.name not in ("site", "label", "kind")]
    return [
        {
            "layer": row.label,
            "kind": row.kind,
            "signal_collapsed": (row.site.stream, row.site.module) in view.collapsed,
            **{name: None if (reading := getattr(row, name)) is None else reading.as_dict() for name in readings},
        }
        for row in layer_rows(view)
    ]


def _table(
    rows: list[LayerRow],
    columns: list[Column],
    collapsed: Collection[tuple[str, str]],
    *,
    gap: int,
    brief: bool = False,
) -> Table:
    table = Table(box=None, padding=(0, gap, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("layer\n", no_wrap=True)
    for column in columns:
        table.add_column(_head(column, rows), justify="right", no_wrap=True)
    for row in rows:
        gone = (row.site.stream, row.site.module) in collapsed or (
            row.collapsed is not None and row.collapsed.value > 0.5
        )
        cells = (cell(_of(row, column), column.form, collapsed=gone, brief=brief) for column in columns)
        table.add_row(shortened(row.label), *cells)
    return table


def _head(column: Column, rows: list[LayerRow]) -> str:
    """The head with the lags that the column's readings have: one, or the shortest and the longest."""
    lags = sorted({each.lag for row in rows if (each := _of(row, column)) is not None and each.lag is not None})
    told = f"{lags[0]}–{lags[-1]}" if len(lags) > 1 else str(lags[0]) if lags else column.lag
    return column.head.format(lag=told)


def _with_interval(value: float, low: float, high: float) -> str:
    """Value and interval with the same decimals: two significant digits of the value, at most four places.

    Example:
        >>> _with_interval(0.0312, 0.0298, 0.0331), _with_interval(12.3, 9.87, 14.1)
        ('0.031 [0.030, 0.033]', '12 [10, 14]')
    """
    if value < 5e-5:
        return "< 0.0001"
    if value >= 1e5:
        return number(value, 2)
    places = min(4, max(0, 1 - math.floor(math.log10(value))))
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def _of(row: LayerRow, column: Column) -> Reading | None:
    reading: Reading | None = getattr(row, column.field)
    return reading


def _when(rows: list[LayerRow]) -> str:
    steps = [row.drift.step for row in rows if row.drift is not None]
    return f"latest readings, step {max(steps)}; the findings look at the whole run" if steps else ""


def _legend(rows: list[LayerRow]) -> str:
    samples = sorted({row.drift.n for row in rows if row.drift is not None})
    count = f" n = {samples[-1]} samples." if samples else ""
    return (
        "Drift of each layer's input in standard deviations of the feature at the reference time [95 % interval]."
        f"{count} Lag: optimiser steps between the two states; drifts of unequal lags are not comparable. Parameter"
        " drift: same samples, moved parameters. Observed drift: two batches of training, so other samples too; up to"
        " its floor, other samples alone explain it. Gradient gain: norm of the gradient leaving the layer ÷ entering"
        " it."
    )
