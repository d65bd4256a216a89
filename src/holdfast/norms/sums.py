"""Sums whose bits do not depend on how many threads take part, for layers in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def total(x: Float[Tensor, "*shape"], axes: tuple[int, ...]) -> Float[Tensor, "*reduced"]:
    """The sum over axes, which stay with length 1.

    On the CPU it is taken in float64 and rounded once: which thread adds what is lost in the rounding.

    Args:
        x: of any floating type.
        axes: to be reduced; none gives x itself.

    Returns:
        In the type of x.

    Example:
        >>> total(torch.tensor([[1e8, 1.0, -1e8]]), (1,))
        tensor([[1.]])
    """
    if not axes:
        return x
    return x.sum(axes, keepdim=True, dtype=torch.float64 if x.device.type == "cpu" else None).to(x.dtype)


def spread(values: Float[Tensor, "*own"], x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Values in the shape of x, as broadcasting gives them, with a gradient that is such a sum.

    Args:
        values: of as many axes as x, each of its length or of 1.
        x: where they will be used; they take its type.

    Returns:
        A view of the shape of x, or the values themselves where nothing is summed.

    Example:
        >>> spread(torch.tensor([[2.0]]), torch.zeros(1, 3))
        tensor([[2., 2., 2.]])
    """
    values = values.to(x.dtype)
    traced = torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x)
    if values.shape == x.shape or traced or torch.autograd.forward_ad._current_level >= 0:
        return values.expand_as(x)
    return _Spread.apply(values, x.shape)  # type: ignore[no-untyped-call]


def along(parameter: Float[Tensor, " channels"], x: Float[Tensor, "*shape"], axis: int) -> Float[Tensor, "*shape"]:
    """A parameter of one value a channel, or one in all, in the shape of x.

    Args:
        parameter: `(channels,)` or `(1,)`.
        x: where it will be used.
        axis: of the channels.

    Returns:
        As `spread`.
    """
    shape = [1] * x.dim()
    shape[axis] = -1
    return spread(parameter.view(shape), x)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, shape: torch.Size) -> Tensor:
        ctx.axes = tuple(axis for axis, (own, wide) in enumerate(zip(values.shape, shape, strict=True)) if own != wide)
        return values.expand(shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return total(dy, ctx.axes), None
