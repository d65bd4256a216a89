"""How a figure's words are written: numbers, readings with their uncertainty, names that cannot be taken for markup."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

from holdfast.core.reading import Reading

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3) -> str:
    """A figure for a person.

    Args:
        value: any float; NaN and infinities are named.
        digits: significant ones.

    Returns:
        Text without trailing noise; powers of ten outside 0.001 … 99999.

    Example:
        >>> number(0.12345), number(1.5e-7), number(float("inf")), number(0.0), number(31622.8)
        ('0.123', '1.5×10⁻⁷', '∞', '0', '31600')
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 < power < 5:
        return f"{float(f'{value:.{digits}g}'):.{max(digits - 1 - power, 0)}f}".replace("-", "−")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}×10{str(power).translate(_SUPERSCRIPT)}".replace("-", "−")


def uncertainty(reading: Reading) -> str:
    """A reading's interval, floor and sample size, as far as it has them.

    Args:
        reading: any.

    Returns:
        Such as `"95 % interval 0.1 to 0.2 · floor 0.05 · n = 64"`.
    """
    parts = []
    if reading.interval is not None:
        low, high = reading.interval
        parts.append(f"95 % interval {number(low)} to {number(high)}")
    if reading.noise_floor is not None:
        parts.append(f"noise floor {number(reading.noise_floor)}")
    parts.append(f"n = {reading.n}")
    return " · ".join(parts)


def verdict(reading: Reading) -> str:
    """Whether the figure says anything: `"within noise"`, `"not finite"` or `""`.

    Args:
        reading: any.
    """
    if not math.isfinite(reading.value):
        return "not finite"
    return "" if reading.above_noise else "within noise"


def described(reading: Reading) -> str:
    """A reading in lines for a hover box (Plotly's pseudo-HTML).

    Args:
        reading: any.

    Returns:
        Value with unit, then its uncertainty, then whether it lies within noise.
    """
    remark = verdict(reading)
    return "<br>".join(
        filter(
            None,
            [
                f"{number(reading.value)} {safe(reading.unit)}",
                uncertainty(reading).replace(" · ", "<br>"),
                "" if reading.lag is None else f"over {reading.lag} step{'s' if reading.lag != 1 else ''}",
                f"<b>{remark}</b>" if remark else "",
            ],
        )
    )


def safe(text: str) -> str:
    """Text that Plotly shows as it is: no tag, no entity, no MathJax.

    Args:
        text: any, such as a module's path.

    Returns:
        Escaped text. Quotes stay: Plotly sets text, not attributes, and does not know `&quot;`.

    Example:
        >>> safe("<b>fc</b> & 'x'")
        "&lt;b&gt;fc&lt;/b&gt; &amp; 'x'"
    """
    return html.escape(text, quote=False).replace("$", "&#36;")


def shortened(text: str, length: int = 26) -> str:
    """A long name made short: leading parts of a path to their initials, then, if need be, its middle left out.

    Args:
        text: any, such as a module's path.
        length: greatest length of what comes back.

    Example:
        >>> shortened("encoder.layers.11.attention.output.dense")
        'e.l.11.a.output.dense'
        >>> shortened("a_name_without_any_parts_in_it", 13)
        'a_name…_in_it'
    """
    parts = text.split(".")
    for index in range(len(parts) - 1):
        if len(".".join(parts)) <= length:
            break
        if not parts[index].isdigit():
            parts[index] = parts[index][:1]
    text = ".".join(parts)
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def unique(names: Iterable[str]) -> list[str]:
    """Safe names for a category axis, each different from the others.

    Args:
        names: such as `site.label`, in order.

    Returns:
        One name each; a repeated one is numbered.

    Example:
        >>> unique(["fc", "fc", "<b>"])
        ['fc', 'fc (2)', '&lt;b&gt;']
    """
    seen: dict[str, int] = {}
    found: list[str] = []
    for name in names:
        seen[name] = count = seen.get(name, 0) + 1
        found.append(safe(name if count == 1 else f"{name} ({count})"))
    return found
