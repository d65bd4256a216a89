"""`SwitchableNorm`: a learnt mix of the statistics of sample and channel, of the sample, and of the batch."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm

from holdfast.core.errors import InputError
from holdfast.norms.batch_norm import Batch, check_channels
from holdfast.norms.normaliser import HALVES, empty, in_type
from holdfast.norms.spec import NormSpec, affine_of

_PARTS = (
    NormSpec("instance", ("positions",)),
    NormSpec("layer", ("channels", "positions")),
    NormSpec("batch", ("samples", "positions"), state="running"),
)


class SwitchableNorm(Batch, _BatchNorm):
    r"""Learns how much of InstanceNorm, LayerNorm and BatchNorm each layer wants.

    y = γ · (x − Σ wᵢ μᵢ) / √(Σ vᵢ σᵢ² + ε) + β, with w and v the softmax of three logits each, over the statistics
    of one channel of one sample, of one sample, and of one channel of the batch (the running ones in evaluation).

    What it does:
        Six numbers a layer are learnt beside γ and β. They are equal at first.

    Why it matters:
        No choice by hand: layers near the pictures tend to instance statistics, small batches to those of the sample.

    When it is wrong:
        It costs three statistics, and the mix tells little that a comparison of the three would not. With batches of
        1 or 2 the batch's part is noise until the logits have moved. It cannot be folded into a convolution.

    Example:
        >>> norm = SwitchableNorm(3)
        >>> norm(torch.randn(4, 3, 5, 5)).shape, norm.mean_weight.shape
        (torch.Size([4, 3, 5, 5]), torch.Size([3]))

    What to do:
        `model.norm = SwitchableNorm(width)` where a BatchNorm stood. Read `norm.shares()` after training.

    Args:
        num_features: channels, on axis 1 of the input.
        eps: ε, added to the variance.
        momentum: m, of the running statistics; `None` is the average over all batches.
        affine: whether γ (`weight`) and β (`bias`) are learnt.
        track_running_stats: without it, evaluation uses the statistics of its batch.
        device: of parameters and buffers.
        dtype: of parameters.

    References:
        Luo et al., Differentiable Learning-to-Normalize via Switchable Normalization, 2018, arXiv:1806.10779.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.mean_weight = Parameter(torch.zeros(3, device=device, dtype=dtype))
        self.variance_weight = Parameter(torch.zeros(3, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """γ of ones, β of zeros, equal shares, and no batch seen."""
        super().reset_parameters()
        for name in ("mean_weight", "variance_weight"):
            if name in self._parameters:  # the constructor of torch's class calls before there are any
                torch.nn.init.zeros_(self._parameters[name])

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        affine = affine_of(self.weight)
        return NormSpec("switchable", (), affine=affine, state="running", mix=_PARTS)

    def shares(self) -> dict[str, tuple[float, float]]:
        """The learnt mix.

        Returns:
            For `instance`, `layer` and `batch` the share in the mean and in the variance; each adds up to 1.
        """
        mean, variance = (each.detach().softmax(0).tolist() for each in (self.mean_weight, self.variance_weight))
        return {part.name: (mean[i], variance[i]) for i, part in enumerate(_PARTS)}

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:  # type: ignore[override]
        """Normalise.

        Args:
            x: `(batch, channels, *positions)`, with at least 2 positions.

        Returns:
            The same shape, type and layout.

        Raises:
            ValueError: fewer than 3 axes.
            InputError: other than `num_features` channels, one position, or no floating type.
        """
        self._check_input_dim(x)
        check_channels(x, self.num_features, "SwitchableNorm")
        if x.numel() == 0:
            return empty(x, self.weight, self.bias)
        if x[0, 0].numel() == 1:
            raise InputError(
                "2 positions or more, of which instance statistics are taken",
                f"an input of shape {tuple(x.shape)}",
                "take BatchLayerNorm, which mixes batch and layer statistics",
            )
        wide = x.float() if x.dtype in HALVES else x
        axes = tuple(range(2, x.ndim))
        # Every statistic follows from those of one channel of one sample: the tensor is read once.
        variance, mean = torch.var_mean(wide, axes, correction=0)
        means, variances = [mean], [variance]
        for axis in (1, 0):
            means.append(mean.mean(axis, keepdim=True))
            variances.append((variance + (mean - means[-1]).square()).mean(axis, keepdim=True))
        if self.training or self.running_mean is None or self.running_var is None:
            if self.training:
                self._note(self._keeping(), means[2], variances[2])
                if self.track_running_stats:
                    self._track(means[2][0], variances[2][0], x.numel() / x.shape[1])
        else:
            means[2], variances[2] = self.running_mean.to(wide), self.running_var.to(wide)
        shares = self.mean_weight.to(wide).softmax(0), self.variance_weight.to(wide).softmax(0)
        level, spread = (
            torch.stack([share * each.expand_as(mean) for share, each in zip(part, of, strict=True)]).sum(0)
            for part, of in zip(shares, (means, variances), strict=True)
        )
        weight, bias = in_type(self.weight, wide), in_type(self.bias, wide)
        rate = (spread + self.eps).rsqrt() * (1.0 if weight is None else weight)
        shape = (len(x), x.shape[1]) + (1,) * len(axes)
        y = (wide - level.view(shape)) * rate.view(shape)
        return (y if bias is None else y + bias.view((1, -1) + (1,) * len(axes))).to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 3:
            raise ValueError(f"expected at least 3D input (got {input.dim()}D input)")
