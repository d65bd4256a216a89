"""Normalisation in plain PyTorch: the oracle of the compiled kernels, and what serves where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def channel_moments_ref(
    x: Float[Tensor, "samples channels *positions"], groups: int, bounds: Sequence[int], centre: bool = True
) -> tuple[Float[Tensor, "statistics groups"], Float[Tensor, "statistics groups"]]:
    """Mean and biased variance of runs of samples and groups of channels; or 0 and the mean square.

    Args:
        x: `(samples, channels, *positions)`, none of them 0.
        groups: of neighbouring channels that share a statistic.
        bounds: the sample with which each run begins, and the number of samples.
        centre: whether the mean is subtracted.

    Returns:
        Both `(statistics, groups)`, in the type of x.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> channel_moments_ref(x, 2, (0, 2))
        (tensor([[2., 4.]]), tensor([[1., 4.]]))
    """
    cells = x.reshape(len(x), groups, -1)
    sizes = [1] * len(x) if isinstance(bounds, range) else [end - start for start, end in pairwise(bounds)]
    if len(set(sizes)) == 1:
        blocks = cells.unflatten(0, (len(sizes), sizes[0]))  # type: ignore[no-untyped-call]
        return _moments(blocks, (1, 3), centre)
    found = [_moments(each, (0, 2), centre) for each in cells.split(sizes)]  # type: ignore[no-untyped-call]
    return torch.stack([mean for mean, _ in found]), torch.stack([variance for _, variance in found])


def _moments(x: Tensor, axes: tuple[int, ...], centre: bool) -> tuple[Tensor, Tensor]:
    if not centre:
        square = x.square().mean(axes)
        return torch.zeros_like(square), square
    mean = x.mean(axes, keepdim=True)
    return mean.squeeze(axes), (x - mean).square().mean(axes)


def channel_norm_ref(
    x: Float[Tensor, "samples channels *positions"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    eps: float,
    groups: int,
    bounds: Sequence[int],
    centre: bool = True,
) -> Float[Tensor, "samples channels *positions"]:
    """Normalise: y = γ · (x − μ) / √(σ² + ε) + β, each statistic over a run of samples and a group of channels.

    Args:
        x: `(samples, channels, *positions)`.
        weight: γ.
        bias: β.
        eps: ε.
        groups: of neighbouring channels that share a statistic.
        bounds: the sample with which each run begins, and the number of samples.
        centre: whether the mean is subtracted.

    Returns:
        The shape and type of x.
    """
    mean, variance = channel_moments_ref(x, groups, bounds, centre)
    return channel_norm_from_ref(x, mean, variance, weight, bias, eps, bounds)


def channel_norm_from_ref(
    x: Float[Tensor, "samples channels *positions"],
    mean: Float[Tensor, "statistics groups"],
    variance: Float[Tensor, "statistics groups"],
    weight: Float[Tensor, " channels"] | None,
    bias: Float[Tensor, " channels"] | None,
    eps: float,
    bounds: Sequence[int],
) -> Float[Tensor, "samples channels *positions"]:
    """The same, by statistics that are given.

    Args:
        x: `(samples, channels, *positions)`.
        mean: μ of each run of samples and group of channels.
        variance: σ², the same.
        weight: γ.
        bias: β.
        eps: ε.
        bounds: the sample with which each run begins, and the number of samples.

    Returns:
        The shape and type of x.
    """
    shape = (-1, x.shape[1]) + (1,) * (x.ndim - 2)
    sizes = () if isinstance(bounds, range) else [end - start for start, end in pairwise(bounds)]

    def spread(values: Tensor) -> Tensor:
        values = values.repeat_interleave(x.shape[1] // values.shape[1], 1)
        if len(sizes) > 1 and max(sizes) > 1:
            runs = torch.tensor(sizes, device=x.device)
            values = values.repeat_interleave(runs, 0, output_size=len(x))
        return values.view(shape)

    y = (x - spread(mean)) * (spread(variance) + eps).rsqrt()
    return _affine(y, weight, bias, (1, -1) + (1,) * (x.ndim - 2))


def row_norm_ref(
    x: Float[Tensor, "*rows width"],
    weight: Float[Tensor, " width"] | None,
    bias: Float[Tensor, " width"] | None,
    eps: float,
    centre: bool = True,
) -> Float[Tensor, "*rows width"]:
    """Normalise: y = γ · (x − μ) / √(σ² + ε) + β, a statistic a row; not centred, μ is 0 and σ² the mean square.

    Args:
        x: rows along the last axis.
        weight: γ.
        bias: β.
        eps: ε.
        centre: whether the mean is subtracted.

    Returns:
        The shape and type of x.
    """
    mean, variance = _moments(x, (-1,), centre)
    return _affine((x - mean.unsqueeze(-1)) * (variance.unsqueeze(-1) + eps).rsqrt(), weight, bias, (-1,))


def _affine(y: Shaped[Tensor, "*shape"], weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)
