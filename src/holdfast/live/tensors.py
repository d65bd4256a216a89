"""`tensors_in`: the tensors of a nested value; `storage_of`: which of them share memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors inside tuples, lists, mappings and dataclasses, however nested, in their order.

    Example:
        >>> import torch
        >>> [tensor.item() for tensor in tensors_in({"loss": torch.tensor(1), "rest": (None, [torch.tensor(2)])})]
        [1, 2]
    """
    found: list[Tensor] = []
    _collect(value, found)
    return found


def storage_of(tensor: Tensor) -> int:
    """A number that is the same for tensors of one memory, while one of them lives.

    Args:
        tensor: of any layout; one without a memory of its own, such as a sparse one, shares with itself only.

    Example:
        >>> import torch
        >>> whole = torch.zeros(4)
        >>> storage_of(whole[:2]) == storage_of(whole), storage_of(whole.clone()) == storage_of(whole)
        (True, False)
    """
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return -id(tensor)


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, tuple | list):
        for each in value:
            _collect(each, found)
    elif isinstance(value, Mapping):
        for each in value.values():
            _collect(each, found)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            _collect(getattr(value, each.name, None), found)
