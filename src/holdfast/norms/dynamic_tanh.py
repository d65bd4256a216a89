"""`DynamicTanh`: a bounded function in the place of a normaliser."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.norms.batch_norm import check_channels
from holdfast.norms.layer_norm import check_last
from holdfast.norms.normaliser import HALVES, Normaliser
from holdfast.norms.spec import NormSpec
from holdfast.norms.sums import along


class DynamicTanh(Normaliser, nn.Module):
    r"""Bounds every value by a tanh of learnt slope, in the place of a normaliser; it takes no statistics.

    y = γ · tanh(α · x) + β, with one α a layer and γ and β a channel.

    What it does:
        What LayerNorm does in a trained transformer looks like a tanh of the input: straight in the middle, bounded
        for the few large values. This is that function itself, value by value, with α in the part of 1/σ.

    Why it matters:
        No sums over features: nothing to communicate where features are split over devices, and the same function
        for one value as for a batch. In the paper's transformers it is as good as LayerNorm and RMSNorm.

    When it is wrong:
        It does not follow the scale of its input: inputs much larger than 1/α saturate and their gradients vanish,
        and nothing brings them back. In place of BatchNorm in convolutional networks the paper found it worse. Wide
        language models need another α at first, smaller with width, and a larger one before attention.

    Example:
        >>> norm = DynamicTanh(2)
        >>> norm(torch.tensor([[0.0, 1e30]])).detach()
        tensor([[0., 1.]])

    What to do:
        `model.norm = DynamicTanh(width)` where a LayerNorm or RMSNorm stood, and train from the start.

    Args:
        num_channels: channels.
        alpha: α at first.
        channels_last: whether the channels are on the last axis; else on axis 1.
        affine: whether γ (`weight`) and β (`bias`) are learnt.
        device: of parameters.
        dtype: of parameters.

    Raises:
        InputError: an α that is 0 or not finite.

    References:
        Zhu, Chen, He, LeCun and Liu, Transformers without Normalization, 2025, arXiv:2503.10622.
    """

    def __init__(
        self,
        num_channels: int,
        alpha: float = 0.5,
        *,
        channels_last: bool = True,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0.0 < abs(alpha) < float("inf"):
            raise InputError("a slope that is finite and not 0", f"alpha={alpha}", "the paper's is 0.5")
        super().__init__()
        self.num_channels, self.first_alpha, self.channels_last, self.affine = (
            num_channels,
            alpha,
            channels_last,
            affine,
        )
        kind = {"device": device, "dtype": dtype}
        self.alpha = nn.Parameter(torch.empty(1, **kind))
        self.weight = nn.Parameter(torch.empty(num_channels, **kind)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_channels, **kind)) if affine else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set α to its first value, γ to ones and β to zeros."""
        nn.init.constant_(self.alpha, self.first_alpha)
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        return NormSpec(
            "dynamic-tanh",
            (),
            centre=False,
            scale="none",
            affine="channels" if self.affine else "none",
            bias=self.affine,
            features_last=self.channels_last,
            then="tanh",
        )

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Apply the function.

        Args:
            x: `(*, channels)`, or `(batch, channels, *positions)`.

        Returns:
            The same shape, type and layout; halves are computed in float32.

        Raises:
            InputError: other channels, or no floating type.
        """
        axis = self._check(x)
        wide = x.float() if x.dtype in HALVES else x
        y = torch.tanh(along(self.alpha, wide, axis) * wide)
        if self.weight is not None and self.bias is not None:
            y = y * along(self.weight, wide, axis) + along(self.bias, wide, axis)
        return y.to(x.dtype)

    def _check(self, x: Tensor) -> int:
        """The axis of the channels."""
        if self.channels_last:
            check_last(x, (self.num_channels,), "DynamicTanh")
            return x.dim() - 1
        if x.dim() < 2:
            raise InputError("(batch, channels, *positions)", f"a shape of {tuple(x.shape)}", "type: x.unsqueeze(0)")
        check_channels(x, self.num_channels, "DynamicTanh")
        return 1

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num_channels}, channels_last={self.channels_last}, affine={self.affine}"
