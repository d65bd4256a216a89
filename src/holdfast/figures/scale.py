"""Ticks of a logarithmic axis as a person writes them: 0.1, 0.2, 0.5, 1."""

from __future__ import annotations

import math
from collections.abc import Iterable

import plotly.graph_objects as go

from holdfast.figures.wording import number

# greatest number of decades → ticks in each
_STEPS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0.3, (1, 1.1, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)),
    (0.9, (1, 1.5, 2, 3, 5, 7)),
    (3.0, (1, 2, 5)),
    (5.0, (1, 3)),
)


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between two bounds: 1, 2, 5 of each decade, or 1 and 3, or decades where there are many.

    Args:
        low: positive.
        high: not below `low`.

    Returns:
        Rising values; at most a dozen.

    Example:
        >>> [round(tick, 3) for tick in log_ticks(0.02, 3.0)]
        [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    """
    decades = math.log10(high / low)
    leading = next((steps for most, steps in _STEPS if decades <= most), (1,))
    every = max(1, math.ceil(decades / 10))
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [each * 10.0**decade for decade in range(first, last + 1) if decade % every == 0 for each in leading]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def log_axis(values: Iterable[float]) -> dict[str, object]:
    """Settings of a logarithmic axis that shows the given values.

    Args:
        values: anything; only positive finite ones count.

    Returns:
        Keyword arguments for `update_xaxes` or `update_yaxes`: type, range, ticks and their text.
    """
    shown = [value for value in values if math.isfinite(value) and value > 0]
    low, high = min(shown, default=0.1), max(shown, default=10.0)
    air = max(0.06 * math.log10(high / low), 0.08)
    low, high = low / 10**air, high * 10**air
    ticks = log_ticks(low, high)
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [number(tick, 2 if f"{tick:e}"[2] != "0" else 1) for tick in ticks],
    }


def colour_ticks(low: float, high: float) -> dict[str, object]:
    """Ticks of a colour bar over logarithms.

    Args:
        low: logarithm (base 10) of the least value.
        high: of the greatest.

    Returns:
        Settings `tickvals` and `ticktext` of a colour bar.
    """
    ticks = log_ticks(10**low, 10**high)
    return {
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [number(tick, 2 if f"{tick:e}"[2] != "0" else 1) for tick in ticks],
    }


def apply_log(figure: go.Figure, values: Iterable[float], **place: object) -> None:
    """Make an x axis logarithmic over the given values.

    Args:
        figure: changed in place.
        values: that the axis must show.
        **place: which axis, such as `col=2`.
    """
    figure.update_xaxes(**log_axis(values), **place)
