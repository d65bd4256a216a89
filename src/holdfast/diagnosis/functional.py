"""Activations that no module wraps, and of which nothing was read."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.protocols import History


def unread_functions(history: History, stream: str, of_kind: Callable[[str], bool]) -> list[str]:
    """Sentences on the functions of a kind that a network calls, for a rule that has no reading of any.

    Args:
        history: of a run.
        stream: which model.
        of_kind: tells from a function's name whether the rule is about it.

    Returns:
        One sentence for each function and module that calls it; none when the structure is not known.
    """
    structure = history.structure(stream)
    if structure is None:
        return []
    calls = dict.fromkeys((call.name, call.owner) for call in structure.functional if of_kind(call.name))
    return [
        f"the function `{name}` in '{owner or '(model)'}' was not read: what it takes is not the output of one layer "
        "that was observed; make it a module to have it judged"
        for name, owner in calls
    ]
