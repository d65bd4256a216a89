"""`RMSNorm`: a vector divided by its root mean square."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from holdfast.kernels.normalise import row_norm, takes
from holdfast.norms.normaliser import Normaliser
from holdfast.norms.running import check_eps
from holdfast.norms.spec import NormSpec, affine_of

_REAL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class RMSNorm(Normaliser, nn.RMSNorm):
    r"""Divides each vector by its root mean square, then scales it by γ; it does not centre.

    y = γ · x / √(mean(x²) + ε), the mean over the axes of `normalized_shape`.

    What it does:
        Holds the length of every vector at √(number of features), whatever the layers before it do. One
        statistic a vector; no running state, so that training and evaluation compute the same function.

    Why it matters:
        It is the normaliser of most language models: cheaper than LayerNorm, and as good wherever the mean of the
        features carries little.

    When it is wrong:
        When the mean is the trouble: a shift that adds the same amount to all features is left in. When lengths
        carry meaning (regression on amplitudes), they are erased.

    Example:
        >>> norm = RMSNorm(2, eps=0.0)
        >>> norm(torch.tensor([[3.0, 4.0]])).detach() * 12.5**0.5
        tensor([[3., 4.]])
        >>> norm.telemetry()["mean_square"]
        tensor([12.5000], dtype=torch.float64)

    What to do:
        `model.norm = RMSNorm(width)` where `torch.nn.RMSNorm(width)` stood: constructor, defaults and state_dict
        keys are the same, and checkpoints load both ways.

    It differs from `torch.nn.RMSNorm` in one thing: features are scaled by a power of two before they are squared,
    so that |x| ≈ 1e30 (or, with `eps=0`, 1e-30) gives the right answer where torch's square leaves float32's range.

    Args:
        normalized_shape: the last axes of the input, which share one statistic.
        eps: added to the mean square; `None` is the machine epsilon of the type computed in (float32 for halves).
        elementwise_affine: whether γ (`weight`, ones at first) is learnt.
        device: of γ.
        dtype: of γ.

    Raises:
        InputError: ε below 0.

    References:
        Zhang and Sennrich, Root Mean Square Layer Normalization, 2019, arXiv:1910.07467.
    """

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        affine = affine_of(self.weight, "elements")
        return NormSpec("rms", ("channels",), centre=False, scale="rms", affine=affine, bias=False, features_last=True)

    def __init__(
        self,
        normalized_shape: Any,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_eps(eps)
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(*, *normalized_shape)`, of any floating type.

        Returns:
            The same shape and type; halves are computed in float32.
        """
        if not self._fits(x):
            return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)  # says what is wrong, or complex
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        eps = torch.finfo(compute).eps if self.eps is None else self.eps
        axes = tuple(range(-len(self.normalized_shape), 0))
        if takes(x, 0) and x.is_contiguous():
            weight = self.weight if self.weight is None or self.weight.dim() == 1 else self.weight.flatten()
            return row_norm(x.flatten(axes[0]), weight, None, eps, False, self._keeping()).view(x.shape)
        wide = x.to(compute)
        scale = power_of_two_above(wide.detach(), axes)
        scaled = wide / scale
        mean_square = scaled.square().mean(axes, keepdim=True)
        # √(scale²·m + ε) = scale · √(m + ε/scale²), and the scale before the root cancels the one in `scaled`.
        out = scaled * torch.rsqrt(mean_square + eps / scale.square())
        if self.training:
            self._note(self._keeping(), None, (mean_square.detach() * scale.square()).flatten())
        return (out if self.weight is None else out * self.weight).to(x.dtype)

    def _fits(self, x: Any) -> bool:
        shape = self.normalized_shape
        return (
            isinstance(x, Tensor)
            and x.dtype in _REAL
            and len(shape) > 0
            and x.ndim >= len(shape)
            and tuple(x.shape[-len(shape) :]) == shape
        )


def power_of_two_above(x: Float[Tensor, "*shape"], axes: tuple[int, ...]) -> Float[Tensor, "*reduced"]:
    """The power of two just above the greatest absolute value, by which division is exact.

    Args:
        x: any floating tensor.
        axes: which are reduced, to one element.

    Returns:
        The powers, finite and not zero.

    Example:
        >>> power_of_two_above(torch.tensor([[3.0, -5.0], [0.4, 0.0]]), (-1,))
        tensor([[8.0000],
                [0.5000]])
    """
    if x.numel() == 0:
        return x.new_ones([1 if axis - x.ndim in axes else size for axis, size in enumerate(x.shape)])
    largest = math.frexp(torch.finfo(x.dtype).max)[1]  # 128 for float32
    # Bounds keep ε/scale² in range for any ε below 2**31, and the scale itself finite when the peak is not.
    low, high = 2.0 ** -(3 * largest // 8), 2.0 ** (largest - 2)
    peak = x.abs().amax(axes, keepdim=True).nan_to_num(nan=1.0).clamp(low, high)
    return peak / torch.frexp(peak).mantissa
