"""What a watch is given: the layers that patterns choose, and the probe as a call."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from holdfast.core.errors import WatchError
from holdfast.live.replay import Call, record_call


def chosen(
    leaves: list[tuple[str, nn.Module]], patterns: Sequence[str] | None, *, strict: bool = True
) -> list[tuple[str, nn.Module]]:
    """Of all leaves, those whose path matches a pattern.

    Args:
        leaves: `(path, module)`.
        patterns: as shells know them; `None` for all.
        strict: whether to refuse patterns that match none.

    Returns:
        As given, fewer.

    Raises:
        WatchError: nothing matches.
    """
    if patterns is None:
        return leaves
    chosen = [(path, module) for path, module in leaves if any(fnmatchcase(path, pattern) for pattern in patterns)]
    if not chosen and strict:
        known = ", ".join(repr(path) for path, _ in leaves[:5])
        raise WatchError(
            "sites that name at least one layer",
            f"{list(patterns)!r}, which match none",
            f"choose among {known}{', …' if len(leaves) > 5 else ''}",
        )
    return chosen


def probe_call(probe: Any) -> Call | None:
    """The probe as a call, on copies: a loader may reuse the memory of the batch.

    Args:
        probe: a tensor, a tuple of positional or a dict of keyword arguments, or `None`.
    """
    if probe is None:
        return None
    own = tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, probe)
    if isinstance(own, dict):
        return record_call((), own)
    return record_call(tuple(own) if isinstance(own, tuple | list) else (own,), {})


def shapes(call: Call) -> str:
    """What a probe consists of, for a message.

    Args:
        call: of the probe.
    """
    parts = [
        f"{'' if name is None else f'{name}='}{tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__}"
        for name, each in [*((None, arg) for arg in call.args), *call.kwargs.items()]
    ]
    return f"a probe of {', '.join(parts)}" if parts else "an empty probe"
