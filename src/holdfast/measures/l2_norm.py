"""Euclidean norms, from whatever holds one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from holdfast.core.errors import StatisticError
from holdfast.stats.moments import Moments
from holdfast.stats.summary import Summary


@torch.no_grad()
def l2_norm(source: float | Tensor | Moments | Summary, n: int | None) -> tuple[float, int]:
    """‖x‖₂ and the number of elements behind it.

    Args:
        source: the norm itself, the tensor (summed in float64, so that 1e30 does not overflow), or moments of it. Of
            a sample of a tensor's elements the norm is estimated as rms · √n.
        n: elements of the whole tensor; needed with a number, and to enlarge a sample's norm.

    Returns:
        The norm (of the finite part, from moments) and the elements seen.

    Raises:
        StatisticError: a number without `n`.

    Example:
        >>> l2_norm(torch.tensor([3.0, 4.0]), None)
        (5.0, 2)
        >>> l2_norm(Moments(2, 3.0, 0.0, 0.0, 0.0), 16)  # two elements of sixteen were seen, both 3
        (12.0, 2)
    """
    if isinstance(source, Summary):
        source = source.moments
    if isinstance(source, Moments):
        whole = source.count if n is None else n
        return (source.rms * math.sqrt(whole) if source.count else 0.0), source.count
    if isinstance(source, Tensor):
        real = torch.view_as_real(source) if source.is_complex() else source
        return float(torch.linalg.vector_norm(real.detach(), dtype=torch.float64)), source.numel()
    if n is None:
        raise StatisticError("the number of elements with a norm given as a number", "n=None", "pass n=tensor.numel()")
    return float(source), n
