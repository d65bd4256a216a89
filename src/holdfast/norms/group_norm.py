"""`GroupNorm`: groups of neighbouring channels of one sample by their own statistics."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.kernels.normalise import Channels, takes
from holdfast.norms.batch_norm import check_channels
from holdfast.norms.masked import Mask, masked_norm
from holdfast.norms.normaliser import HALVES, Normaliser, empty
from holdfast.norms.running import check_eps
from holdfast.norms.spec import Axis, NormSpec, affine_of

_LARGE = 1 << 22
"""Bytes from which the kernel is the faster one; torch's own is good, where the layout is contiguous."""


class GroupNorm(Normaliser, nn.GroupNorm):
    r"""Cuts the channels of each sample into groups, and centres and scales each by its own mean and variance.

    y = γ · (x − μ) / √(σ² + ε) + β, with the mean and the biased variance over the group's channels and positions.

    What it does:
        BatchNorm's service without the batch: statistics of one sample, the same function in training and evaluation.
        One group is LayerNorm over channels and positions, a group a channel is InstanceNorm.

    Why it matters:
        It does not care about the batch size: detection, segmentation, video, anything that fits 1 to 4 samples a
        device.

    When it is wrong:
        With large batches BatchNorm is as a rule the more accurate in image classification, and can be folded away in
        deployment. A group that holds one value (as many groups as channels, no positions) gives β whatever the
        input: `strict=True` refuses it.

    Example:
        >>> norm = GroupNorm(2, 4)
        >>> norm(torch.tensor([[1.0, 3.0, 10.0, 30.0]])).detach().round(decimals=3)
        tensor([[-1.,  1., -1.,  1.]])
        >>> norm.telemetry()["mean"]
        tensor([[ 2., 20.]])

    What to do:
        `model.norm = GroupNorm(32, width)` where `torch.nn.GroupNorm(32, width)` or a BatchNorm stood: constructor,
        defaults and state_dict keys are torch's. `swap-norm` with `to="group"` does it on a live model.

    It differs from `torch.nn.GroupNorm` in this: an empty batch gives gradients of zero; `mask` leaves padding out;
    groups of one value are warned of once, and refused with `strict=True`.

    Args:
        num_groups: groups, a divisor of the channels.
        num_channels: channels, on axis 1 of the input.
        eps: ε, added to the variance.
        affine: whether γ (`weight`) and β (`bias`) are learnt, one value a channel.
        device: of parameters.
        dtype: of parameters.
        strict: whether groups of one value are refused.

    Raises:
        InputError: groups that do not divide the channels, or ε below 0.

    References:
        Wu and He, Group Normalization, 2018, arXiv:1803.08494.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        strict: bool = False,
        **settings: Any,
    ) -> None:
        check_eps(eps)
        if num_groups < 1 or num_channels % num_groups:
            near = max(each for each in range(1, max(num_groups, 1) + 1) if num_channels % each == 0)
            raise InputError(
                "groups that divide the channels",
                f"num_groups={num_groups} of num_channels={num_channels}",
                f"type: GroupNorm({near}, {num_channels})",
            )
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **settings)
        self.strict = strict

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        affine = affine_of(self.weight)
        over: tuple[Axis, ...] = ("channels", "positions")
        return NormSpec("group", over, affine=affine, bias=self.bias is not None, groups=self.num_groups)

    def forward(self, x: Shaped[Tensor, "*shape"], mask: Mask | None = None) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(batch, channels, *positions)`.
            mask: `(batch, *positions)`, True where x counts; the output is 0 elsewhere. `None`: everything counts.

        Returns:
            The same shape, type and layout.

        Raises:
            InputError: other than `num_channels` channels, no floating type, or groups of one value where `strict`.
            ValueError: one value in all, as torch's.
        """
        shape, (weight, bias) = x.shape, self._affine()
        if len(shape) < 2:
            raise InputError("(batch, channels, *positions)", f"a shape of {tuple(shape)}", "type: x.unsqueeze(0)")
        if shape[1] != self.num_channels or not x.is_floating_point():
            check_channels(x, self.num_channels, f"GroupNorm({self.num_groups}, ")
        values = x.numel()
        if values == 0:
            return empty(x, weight, bias)
        if values == shape[0] * self.num_groups:
            self._one_value(x)
        # Of channels_last tensors torch takes the variance in one pass, which loses digits.
        plain = mask is None and x.is_contiguous() and not torch.compiler.is_compiling()
        if plain and weight is not None and bias is not None and not takes(x, _LARGE):
            return self._by_torch(x, weight, bias)
        over = Channels(self.num_groups, range(len(x) + 1))
        if mask is None:
            return self._over_channels(x, weight, bias, self.eps, over)[0]
        y, mean, variance, _ = masked_norm(x, mask, weight, bias, self.eps, over)
        self._note(self._keeping(), mean, variance)
        return y

    def _by_torch(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        dtype = torch.float32 if x.dtype in HALVES else x.dtype
        wide = x if x.dtype is dtype else x.to(dtype)
        if weight.dtype is not dtype:
            weight, bias = weight.to(dtype), bias.to(dtype)
        samples, channels = x.shape[:2]
        sizes = (samples, channels, x.numel() // (samples * channels), self.num_groups)
        y, mean, rate = torch.native_group_norm(wide, weight, bias, *sizes, self.eps)
        self._keeping().take(y, mean, rate, self.eps, self._listened)
        return y if wide is x else y.to(x.dtype)

    def _one_value(self, x: Tensor) -> None:
        """Every group holds one value, of which there is no variance."""
        if len(x) == 1 and self.num_groups == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        if self.strict:
            raise InputError(
                "more than 1 value in a group",
                f"an input of shape {tuple(x.shape)} in {self.num_groups} groups",
                f"take fewer groups: GroupNorm({max(1, self.num_groups // 2)}, {self.num_channels}), or LayerNorm",
            )
        if not self._warned:
            type(self)._warned = True
            warnings.warn(
                f"each of the {self.num_groups} groups holds one value, whose distance from its mean is 0: the output "
                "is β whatever the input; take fewer groups (this is said once)",
                stacklevel=3,
            )

    _warned = False
