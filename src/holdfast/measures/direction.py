"""The cosine between two tensors, and what chance makes of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from holdfast.measures.student import student_975
from holdfast.measures.weights import same_shape


@torch.no_grad()
def cosine(first: Tensor, second: Tensor, what: str) -> float | None:
    """Cosine between two tensors as vectors, in double precision.

    Args:
        first: one.
        second: the other.
        what: the two, in words.

    Returns:
        From −1 to 1; `None` where one of the two is zero or not finite and has no direction.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> cosine(torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 0.0]), "two vectors")
        -1.0
    """
    same_shape(first, second, what)
    u, v = first.detach().double().reshape(-1), second.detach().double().reshape(-1)
    lengths = float(torch.linalg.vector_norm(u)), float(torch.linalg.vector_norm(v))
    if not all(0.0 < length < math.inf for length in lengths):
        return None
    return max(-1.0, min(1.0, float(torch.dot(u / lengths[0], v / lengths[1]))))


def chance_cosine(n: int) -> float:
    """The 97.5th percentile of the cosine between a vector and a random direction.

    r √(n−1) / √(1−r²) has Student's t distribution with n − 1 degrees of freedom.

    Args:
        n: dimensions.

    Returns:
        The percentile; 1 in one dimension, where every direction is ±1.

    Example:
        >>> round(chance_cosine(3), 6), round(chance_cosine(1_000_000), 6)
        (0.95, 0.00196)
    """
    if n < 2:
        return 1.0
    t = student_975(n - 1)
    return t / math.sqrt(t * t + n - 1)
