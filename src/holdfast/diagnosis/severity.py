"""How bad: from a figure to a severity."""

from __future__ import annotations

from holdfast.core.finding import SEVERITIES, Severity


def graded(figure: float, ladder: tuple[float, float, float]) -> Severity | None:
    """The severity that a figure reaches, `None` below the first threshold (or without a figure).

    Args:
        figure: higher is worse.
        ladder: least figures of `"info"`, `"warning"` and `"critical"`.

    Returns:
        The highest reached.

    Example:
        >>> graded(0.3, (0.05, 0.25, 1.0)), graded(0.01, (0.05, 0.25, 1.0)) is None
        ('warning', True)
    """
    return next((level for level, least in zip(SEVERITIES[::-1], ladder[::-1], strict=True) if figure >= least), None)


def worst(severities: list[Severity]) -> Severity:
    """The worst of several.

    Example:
        >>> worst(["info", "critical", "warning"])
        'critical'
    """
    return max(severities, key=SEVERITIES.index)
