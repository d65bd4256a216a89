"""`unmeasured`: why a tensor's values have no statistics; `transforming`: whether a function transform is at work."""

from __future__ import annotations

import torch
from torch import Tensor

_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def unmeasured(tensor: Tensor) -> str | None:
    """Why statistics of a tensor's values cannot be taken.

    Args:
        tensor: any.

    Returns:
        A reason in a few words; `None` for a tensor of real numbers that lies in memory.

    Example:
        >>> unmeasured(torch.tensor([1, 2])), unmeasured(torch.ones(2))
        ('int64 values are not measured', None)
    """
    if tensor.is_nested:
        kind = "nested"
    elif tensor.layout != torch.strided:
        kind = str(tensor.layout).removeprefix("torch.")
    elif tensor.dtype not in _DTYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
    elif tensor.is_meta:
        kind = "meta"
    elif tensor.ndim == 0:
        kind = "single"
    else:
        return None
    return f"{kind} values are not measured"


def transforming() -> bool:
    """Whether `torch.func` transforms the function that is running (vmap, grad, jvp): its tensors hold no plain values.

    Example:
        >>> transforming(), torch.func.vmap(lambda x: x + transforming())(torch.zeros(1)).item()
        (False, 1.0)
    """
    return torch._C._functorch.maybe_current_level() is not None
