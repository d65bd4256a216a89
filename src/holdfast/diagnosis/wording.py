"""How findings write numbers and names."""

from __future__ import annotations

import math
from collections.abc import Sequence

from holdfast.core.reading import Reading
from holdfast.core.site import Site


def number(value: float) -> str:
    """Two significant digits, three above ten; no exponent where a person would write none.

    Example:
        >>> number(0.1234), number(45.67), number(1234.5), number(2.9e-9), number(float("nan"))
        ('0.12', '45.7', '1,234', '2.9e-09', 'no figure')
    """
    if not math.isfinite(value):
        return "no figure" if math.isnan(value) else "infinite"
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) >= 1e6:
        return f"{value:.1e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.2g}"


def percent(fraction: float) -> str:
    """A fraction in per cent, without decimals from 1 % on.

    Example:
        >>> percent(0.624), percent(0.004), percent(0.0)
        ('62 %', '0.4 %', '0 %')
    """
    return f"{100 * fraction:.0f} %" if fraction >= 0.01 or fraction == 0 else f"{100 * fraction:.1g} %"


def proof(reading: Reading) -> str:
    """A reading's own interval, floor and sample size.

    Example:
        >>> proof(Reading("parameter-drift", Site("fc", "input"), 9, 1.0, "reference SD", 64, 0.1, (0.8, 1.2)))
        'at step 9: 1, 95 % interval 0.8 to 1.2, noise floor 0.1, n = 64'
    """
    parts = [f"at step {reading.step}: {number(reading.value)}"]
    if reading.interval is not None:
        parts.append(f"95 % interval {number(reading.interval[0])} to {number(reading.interval[1])}")
    if reading.noise_floor is not None:
        parts.append(f"noise floor {number(reading.noise_floor)}")
    return ", ".join([*parts, f"n = {reading.n}"])


def names(sites: Sequence[Site], most: int = 3) -> str:
    """The sites' modules, the first few by name.

    Example:
        >>> names([Site("a", "input"), Site("b", "input"), Site("c", "input")], most=2)
        "'a', 'b' and 1 more"
    """
    labels = list(dict.fromkeys(site.label for site in sites))
    shown = ", ".join(f"'{label}'" for label in labels[:most])
    return shown if len(labels) <= most else f"{shown} and {len(labels) - most} more"


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "layer"), plural(3, "layer")
        ('1 layer', '3 layers')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
