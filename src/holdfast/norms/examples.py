"""One fresh normaliser of each kind, by the name in `make` and by the name of its class."""

from __future__ import annotations

from torch import nn

from holdfast.core.errors import InputError
from holdfast.norms.general import Norm
from holdfast.norms.make import MAKERS, make

_CHANNELS = 64
_DIMS = (2, 0, 1, 3)
"""Pictures first: they have samples, channels and positions."""


def examples() -> dict[str, nn.Module]:
    """A module for each name that `make` takes, and for each class that it gives.

    Returns:
        By name; for a name of several classes the one that torch has too (`"layer"`: LayerNorm, not LayerNorm2d),
        else the one for pictures.

    Example:
        >>> [type(examples()[name]).__name__ for name in ("batch", "layer", "GroupNorm")]
        ['BatchNorm2d', 'LayerNorm', 'GroupNorm']
    """
    found: dict[str, nn.Module] = {}
    for name in MAKERS:
        made = _made(name)
        if made:
            found[name] = next((each for each in made if hasattr(nn, type(each).__name__)), made[0])
        for each in made:
            found.setdefault(type(each).__name__, each)
    return found


def _made(name: str) -> list[nn.Module]:
    made = []
    for dims in _DIMS:
        try:
            made.append(make(name, _CHANNELS, dims))
        except InputError:  # it has no layer for so many axes
            continue
    return [each for each in made if hasattr(each, "spec") and type(each) is not Norm]
