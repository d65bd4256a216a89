"""Statistics that leave padding out."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from holdfast.core.errors import InputError
from holdfast.kernels.norm_ref import channel_norm_from_ref
from holdfast.kernels.normalise import Channels
from holdfast.norms.normaliser import HALVES, in_type

Mask = Bool[Tensor, "batch *positions"]
"""True where a cell counts."""


def masked_norm(
    x: Shaped[Tensor, "batch channels *positions"],
    mask: Mask,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    over: Channels,
) -> tuple[Shaped[Tensor, "batch channels *positions"], Tensor, Tensor, Tensor]:
    """Normalise by the statistics of the cells that count; the others become 0 and get no gradient.

    Args:
        x: `(batch, channels, *positions)`.
        mask: `(batch, *positions)`, True where x counts.
        weight: γ, `(channels,)`.
        bias: β.
        eps: ε.
        over: which cells share a statistic: one run of samples, or each sample alone.

    Returns:
        The output; mean and biased variance, `(statistics, groups)`; the values of each statistic, `(statistics, 1)`.

    Raises:
        InputError: a mask of another shape or type, or a statistic of which no cell, or a single one, counts.
    """
    if mask.dtype is not torch.bool or mask.shape != x.shape[:1] + x.shape[2:]:
        raise InputError(
            f"a bool mask of shape {tuple(x.shape[:1] + x.shape[2:])}",
            f"{mask.dtype} of shape {tuple(mask.shape)}",
            "True where x counts: mask = torch.arange(length) < lengths[:, None]",
        )
    if len(x) % (len(over.bounds) - 1):
        raise InputError("chunks of one length, where there is a mask", f"{len(x)} samples", "drop the last samples")
    wide = (x.float() if x.dtype in HALVES else x).masked_fill(~mask.unsqueeze(1), 0.0)
    statistics = len(over.bounds) - 1
    counts = mask.to(wide.dtype).reshape(statistics, -1).sum(1, keepdim=True) * (x.shape[1] // over.groups)
    if float(counts.min()) < 2:
        raise InputError(
            "more than 1 value for every statistic", "a mask that leaves fewer", "drop samples without any, or one"
        )

    def joined(values: Tensor) -> Tensor:
        runs = values.reshape(statistics, -1, over.groups, x.shape[1] // over.groups, mask[0].numel())
        return runs.sum((1, 3, 4)) / counts

    mean = joined(wide)
    shape = (-1, x.shape[1]) + (1,) * (x.ndim - 2)
    spread = mean.repeat_interleave(x.shape[1] // over.groups, 1).view(shape)
    variance = joined((wide - spread).masked_fill(~mask.unsqueeze(1), 0.0).square())
    y = channel_norm_from_ref(wide, mean, variance, in_type(weight, wide), in_type(bias, wide), eps, over.bounds)
    return y.masked_fill(~mask.unsqueeze(1), 0.0).to(x.dtype), mean, variance, counts
