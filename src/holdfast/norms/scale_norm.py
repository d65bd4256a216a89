"""`ScaleNorm`: each vector divided by its length, times one learnt length."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.norms.batch_norm import check_channels
from holdfast.norms.layer_norm import check_last
from holdfast.norms.normaliser import HALVES, Normaliser
from holdfast.norms.rms_norm import power_of_two_above
from holdfast.norms.running import check_eps
from holdfast.norms.spec import NormSpec
from holdfast.norms.sums import along, spread, total


class ScaleNorm(Normaliser, nn.Module):
    r"""Divides each vector by its length, and gives all of them one learnt length.

    y = g · x / max(‖x‖₂, ε), the length over the features of one vector; g is one number, √(number of features) at
    first.

    What it does:
        Puts every vector on a sphere of radius g. One statistic a vector, one parameter a layer; no running state, so
        that training and evaluation compute the same function. At first it is RMSNorm with γ of ones.

    Why it matters:
        RMSNorm's gains for each feature are often not needed: in small and low-resource transformers one number
        served as well or better, with D − 1 fewer parameters a layer.

    When it is wrong:
        When features need gains of their own (RMSNorm has them). When the mean is the trouble: it is left in. When
        lengths carry meaning (regression on amplitudes), they are erased. Its one gain moves with the sum of all
        features' gradients: weight decay or a high learning rate on it moves the whole layer.

    Example:
        >>> norm = ScaleNorm(2)
        >>> norm(torch.tensor([[3.0, 4.0]])).detach() / 2**0.5
        tensor([[0.6000, 0.8000]])

    What to do:
        `model.norm = ScaleNorm(width)` where a LayerNorm or RMSNorm stood in a transformer.

    It is computed in units of a power of two near the largest feature, so that |x| ≈ 1e30 gives the right answer
    where the square leaves float32's range.

    Args:
        num_features: D, features of a vector.
        eps: ε, the least length that is divided by.
        channels_last: whether the features are on the last axis; else on axis 1.
        device: of g.
        dtype: of g.

    Raises:
        InputError: fewer than 1 feature, or ε below 0.

    References:
        Nguyen and Salazar, Transformers without Tears: Improving the Normalization of Self-Attention, 2019,
        arXiv:1910.05895.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        channels_last: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_eps(eps)
        if num_features < 1:
            raise InputError("1 feature or more", f"num_features={num_features}", "type: ScaleNorm(512)")
        super().__init__()
        self.num_features, self.eps, self.channels_last = num_features, eps, channels_last
        self.weight = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set g to √D."""
        nn.init.constant_(self.weight, math.sqrt(self.num_features))

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        return NormSpec(
            "scale",
            ("channels",),
            centre=False,
            scale="l2",
            affine="one",
            bias=False,
            features_last=self.channels_last,
        )

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(*, features)`, or `(batch, features, *positions)`.

        Returns:
            The same shape, type and layout; halves are computed in float32.

        Raises:
            InputError: other features, or no floating type.
        """
        axis = self._check(x)
        wide = x.float() if x.dtype in HALVES else x
        unit = power_of_two_above(wide.detach(), (axis,))
        scaled = wide / unit
        square = total(scaled.square(), (axis,))  # the length's second derivative at 0 is none, the square's is
        if self.training:
            self._note(self._keeping(), None, (square.detach() * unit.square() / self.num_features).flatten())
        # max(‖x‖, ε) = unit · max(‖x / unit‖, ε / unit)
        y = scaled * spread(torch.maximum(square, (self.eps / unit).square()).rsqrt(), wide)
        return (y * along(self.weight, wide, axis)).to(x.dtype)

    def _check(self, x: Tensor) -> int:
        """The axis of the features."""
        if self.channels_last:
            check_last(x, (self.num_features,), "ScaleNorm")
            return x.dim() - 1
        if x.dim() < 2:
            raise InputError("(batch, features, *positions)", f"a shape of {tuple(x.shape)}", "type: x.unsqueeze(0)")
        check_channels(x, self.num_features, "ScaleNorm")
        return 1

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num_features}, eps={self.eps}, channels_last={self.channels_last}"
