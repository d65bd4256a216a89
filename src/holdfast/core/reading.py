"""`Reading` and `Table`: what a measure gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from holdfast.core.errors import InputError
from holdfast.core.site import Site
from holdfast.core.units import Unit


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of one measure at one site at one step.

    Args:
        measure: the measure's name, such as `"parameter-drift"`.
        site: where.
        step: the optimiser step after which it holds; the first step is 1.
        value: the figure.
        unit: of the value, the interval and the floor.
        n: sample size: samples (not positions) for activations, elements for parameters.
        noise_floor: 95th percentile of what chance alone makes of the same data (the measure's card says which chance);
            `None` where the figure is exact.
        interval: 95 % interval of the value, or `None`.
        lag: optimiser steps between the two states compared; `None` for a measure of one state.
    """

    measure: str
    site: Site
    step: int
    value: float
    unit: str
    n: int
    noise_floor: float | None = None
    interval: tuple[float, float] | None = None
    lag: int | None = None

    def __str__(self) -> str:
        """One line for a person, with everything that belongs to the figure.

        Example:
            >>> site = Site("fc", "input")
            >>> print(Reading("parameter-drift", site, 9, 0.3, "reference SD", 64, 0.04, lag=1))
            parameter-drift, input of 'fc', step 9: 0.3 reference SD over 1 step (noise floor 0.04, n = 64)
        """
        over = "" if self.lag is None else f" over {self.lag} step{'s' if self.lag != 1 else ''}"
        known = []
        if self.interval is not None:
            known.append(f"95 % interval {_short(self.interval[0])} to {_short(self.interval[1])}")
        if self.noise_floor is not None:
            within = "within " if self._size <= self.noise_floor else ""
            known.append(f"{within}noise floor {_short(self.noise_floor)}")
        place = f"{self.site.port.replace('_', ' ')} of {self.site.label!r}"
        place += "" if self.site.phase == "train" else f" ({self.site.phase})"
        return (
            f"{self.measure}, {place}, step {self.step}: {_short(self.value)} {self.unit}{over} "
            f"({', '.join([*known, f'n = {self.n}'])})"
        )

    @property
    def above_noise(self) -> bool:
        """Whether the value is finite and above its floor (a figure without a floor is above it).

        A cosine counts by its size: chance makes as many negative ones.

        Example:
            >>> Reading("update-alignment", Site("fc", "weight"), 9, -0.9, "cosine", 64, 0.24).above_noise
            True
        """
        return math.isfinite(self.value) and (self.noise_floor is None or self._size > self.noise_floor)

    @property
    def _size(self) -> float:
        return abs(self.value) if self.unit == Unit.COSINE else self.value

    @property
    def lag_decade(self) -> int | None:
        """The nominal lag: the greatest of 1, 10, 100, … that is not above `lag`.

        Example:
            >>> Reading("parameter-drift", Site("fc", "input"), 12, 0.1, "reference SD", 64, lag=12).lag_decade
            10
        """
        return None if self.lag is None else lag_decade(self.lag)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a figure that is not finite becomes its name."""
        return {
            "measure": self.measure,
            "site": str(self.site),
            "step": self.step,
            "value": plain(self.value),
            "unit": str(self.unit),
            "noise_floor": None if self.noise_floor is None else plain(self.noise_floor),
            "interval": None if self.interval is None else [plain(end) for end in self.interval],
            "lag": self.lag,
            "n": self.n,
        }


@dataclass(frozen=True, slots=True)
class Table:
    """The value of a measure that yields a profile or a matrix.

    Args:
        measure: the measure's name.
        step: the optimiser step after which it holds.
        unit: of the values.
        rows: one label a row.
        columns: one label a column.
        values: `(rows, columns)`; NaN where there is no figure.
        n: sample size.
    """

    measure: str
    step: int
    unit: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    n: int

    def column(self, name: str) -> tuple[float, ...]:
        """The values of one column, in the order of `rows`.

        Args:
            name: of the column.

        Raises:
            InputError: there is no such column.

        Example:
            >>> Table("gradient-ics", 9, "L2 norm", ("fc1", "fc2"), ("raw",), ((0.0,), (1.25,)), 64).column("raw")
            (0.0, 1.25)
        """
        if name not in self.columns:
            columns = ", ".join(map(repr, self.columns))
            fix = f"type: table.column({self.columns[0]!r})" if self.columns else "ask for a table that has columns"
            raise InputError(f"a column of {self.measure}: {columns or 'there is none'}", repr(name), fix)
        place = self.columns.index(name)
        return tuple(row[place] for row in self.values)

    def __str__(self) -> str:
        """Aligned columns under a line that says what they are; a dash where there is no figure.

        Example:
            >>> print(Table("gradient-ics", 9, "each column its own", ("fc1", "fc2"), ("raw",), ((0.0,), (1.25,)), 64))
            gradient-ics, step 9, each column its own, n = 64
                  raw
            fc1     0
            fc2  1.25
        """
        # Names of several words stand above each other: a column is as wide as its figures and not as its name.
        names: list[list[str]] = [[], *(column.split() for column in self.columns)]
        height = max(map(len, names))
        head = [tuple(line) for line in zip(*([""] * (height - len(each)) + each for each in names), strict=True)]
        body = [
            (row, *("–" if math.isnan(value) else _short(value) for value in values))
            for row, values in zip(self.rows, self.values, strict=True)
        ]
        widths = [max(map(len, column)) for column in zip(*head, *body, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in (*head, *body)
        ]
        return "\n".join([f"{self.measure}, step {self.step}, {self.unit}, n = {self.n}", *lines])


def _short(value: float) -> str:
    """Three significant digits; no power of ten below a million."""
    return f"{float(f'{value:.3g}'):g}"


def lag_decade(lag: int) -> int:
    """The greatest power of ten that is not above `lag`.

    Example:
        >>> [lag_decade(lag) for lag in (1, 9, 10, 250, 1000)]
        [1, 1, 10, 100, 1000]
    """
    return 10 ** (len(str(lag)) - 1)


def plain(value: float) -> float | str:
    """A float for strict JSON: NaN and infinities as text.

    Example:
        >>> plain(1.5), plain(float("-inf"))
        (1.5, '-inf')
    """
    return value if math.isfinite(value) else str(value)
