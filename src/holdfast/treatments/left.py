"""What a treatment leaves alone: lines of its diff, and, where nothing else is left, the reason why it does nothing."""

from __future__ import annotations

from collections.abc import Iterable

_LEFT = ": left as it is: "


def left_alone(path: str, reason: str) -> str:
    """The line of a diff for a layer that stays.

    Args:
        path: of the layer, `""` for the model itself.
        reason: in one phrase.

    Example:
        >>> left_alone("fc", "it is shared")
        '  fc: left as it is: it is shared'
    """
    return f"  {path or 'the model'}{_LEFT}{reason}"


def why_nothing(lines: Iterable[str], most: int = 3) -> str:
    """The reasons of such lines, each told once, with the first layers it holds for.

    Args:
        lines: of a diff; each one that is not of a layer left alone is a reason of its own.
        most: reasons told, and layers named for each.

    Returns:
        One phrase; `""` without lines.

    Example:
        >>> why_nothing([left_alone(path, "it is shared") for path in "abcde"] + [left_alone("f", "it is odd")])
        'a, b, c and 2 more: left as they are: it is shared; f: left as it is: it is odd'
    """
    layers: dict[str, list[str]] = {}
    for line in lines:
        path, mark, reason = line.strip().partition(_LEFT)
        layers.setdefault(reason if mark else path, []).extend([path] if mark else [])
    told = []
    for reason, paths in list(layers.items())[:most]:
        many = _LEFT.replace("it is", "they are") if len(set(paths)) > 1 else _LEFT
        told.append(f"{first_of(paths, most)}{many}{reason}" if paths else reason)
    rest = len(layers) - len(told)
    return "; ".join(told + ([f"and {rest} reasons more" if rest > 1 else "and 1 reason more"] if rest else []))


def first_of(paths: Iterable[str], most: int = 3) -> str:
    """Each path once, the first few by name.

    Example:
        >>> first_of(["a", "b", "a", "c"], most=2)
        'a, b and 1 more'
    """
    once = list(dict.fromkeys(paths))
    return ", ".join(once[:most]) + (f" and {len(once) - most} more" if len(once) > most else "")
