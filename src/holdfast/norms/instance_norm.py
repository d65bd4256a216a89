"""`InstanceNorm1d`, `InstanceNorm2d`, `InstanceNorm3d`: each channel of each sample by its own statistics."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.kernels.normalise import Channels, takes
from holdfast.norms.masked import Mask, masked_norm
from holdfast.norms.normaliser import HALVES, Normaliser, empty, in_type, recomputing
from holdfast.norms.running import Tracked, check_momentum
from holdfast.norms.spec import NormSpec, State, affine_of

_SMALL = 1 << 18
"""Bytes below which torch's operation is the faster one, for contiguous tensors without γ."""

_CARD = """
    y = γ · (x − μ) / √(σ² + ε) + β, with the mean and the biased variance of one channel of one sample over its
    positions.

    What it does:
        Takes brightness and contrast away from every channel of every sample. No running statistics by default, so
        that training and evaluation compute the same function.

    Why it matters:
        What is left is structure without style: the normaliser of style transfer and of image translation, at any
        batch size.

    When it is wrong:
        Where the level of a channel says what is in the picture (classification), it erases that. With few positions
        (1×1, 2×2) the statistics are noise; with one value it raises. Sequences with padding need `mask`.

    Example:
        >>> norm = {name}(3)
        >>> bool(norm(torch.randn({shape}) * 9 + 5).mean().abs() < 1e-5)
        True

    What to do:
        `model.norm = {name}(width)` where `torch.nn.{name}(width)` stood: constructor, defaults, errors and
        state_dict keys are the same, and checkpoints load both ways.

    It differs from `torch.nn.{name}` in this: running statistics, where they are asked for, stay float32 through
    `.half()` and `.bfloat16()` and move once under activation checkpointing; an empty batch gives an empty output;
    `mask` leaves padding out.

    Args:
        num_features: channels, on axis 1 of the input (axis 0 without a batch axis).
        eps: ε, added to the variance.
        momentum: m, of the running statistics.
        affine: whether γ (`weight`) and β (`bias`) are learnt.
        track_running_stats: whether evaluation uses running statistics, the averages over samples.
        device: of parameters and buffers.
        dtype: of parameters.

    Raises:
        InputError: m outside [0, 1], or ε below 0.

    References:
        Ulyanov, Vedaldi and Lempitsky, Instance Normalization, 2016, arXiv:1607.08022.
"""


class Instance(Normaliser, Tracked):
    """What the three have in common."""

    num_features: int
    eps: float
    affine: bool
    track_running_stats: bool

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        check_momentum(momentum, eps)
        given = {"affine": affine, "track_running_stats": track_running_stats, "device": device, "dtype": dtype}
        super().__init__(num_features, eps, momentum, **given, **settings)  # type: ignore[call-arg]
        self._keep_statistics_wide()

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        affine = affine_of(self.weight)
        state: State = "running" if self.track_running_stats else "none"
        return NormSpec("instance", ("positions",), affine=affine, bias=self.bias is not None, state=state)

    def forward(self, x: Shaped[Tensor, "*shape"], mask: Mask | None = None) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(batch, channels, *positions)`, or without the batch axis.
            mask: `(batch, *positions)`, True where x counts; the output is 0 elsewhere. `None`: everything counts.

        Returns:
            The same shape, type and layout.

        Raises:
            ValueError: other than the expected axes, other than `num_features` channels where γ is learnt, or one
                value a channel, as torch's.
            InputError: no floating type.
        """
        self._check_input_dim(x)  # type: ignore[attr-defined]
        if x.dim() == self._get_no_batch_dim():  # type: ignore[attr-defined]
            return self.forward(x.unsqueeze(0), None if mask is None else mask.unsqueeze(0)).squeeze(0)
        self._check_channels(x)
        if x.numel() == 0:
            return empty(x, self.weight, self.bias)
        running = not self.training and self.track_running_stats
        if x[0, 0].numel() == 1 and not running:
            raise ValueError(f"Expected more than 1 spatial element when training, got input size {x.size()}")
        if running:
            return self._evaluate(x, mask)
        small = x.is_contiguous() and not torch.compiler.is_compiling() and not takes(x, _SMALL)
        if mask is None and self.weight is None and not self.track_running_stats and small:
            return self._by_torch(x)
        over = Channels(x.shape[1], range(len(x) + 1))
        if mask is not None:
            y, mean, variance, counts = masked_norm(x, mask, self.weight, self.bias, self.eps, over)
            self._note(self._keeping(), mean, variance)
        else:
            y, kept = self._over_channels(x, self.weight, self.bias, self.eps, over)
            if not (self.training and self.track_running_stats):
                return y
            mean, variance = kept.moments()
            counts = mean.new_tensor(x[0, 0].numel())
        if self.training and self.track_running_stats:
            self._track_samples(mean, variance * (counts / (counts - 1)))
        return y

    def _by_torch(self, x: Tensor) -> Tensor:
        """By torch's BatchNorm, to which each channel of each sample is a channel."""
        wide = x.float() if x.dtype in HALVES else x
        flat = wide.view(1, x.shape[0] * x.shape[1], *x.shape[2:])
        y, mean, rate = torch.native_batch_norm(flat, None, None, None, None, True, 0.0, self.eps)
        shape = x.shape[:2]
        self._keeping().take(y, mean.view(shape), rate.view(shape), self.eps, False)
        return y.view(x.shape).to(x.dtype)

    _pools_between = False

    def _track_samples(self, mean: Tensor, unbiased: Tensor) -> None:
        """Take the averages over samples of their means and of their variances into the running ones."""
        if recomputing():
            return
        samples = float(len(mean))
        mean, unbiased = mean.detach().mean(0), unbiased.detach().mean(0)
        if self._pool is None:
            self._move(mean, unbiased)
        else:
            self._pool.add(mean, unbiased * samples, samples)

    def _next_momentum(self) -> float | Tensor:
        # torch's InstanceNorm counts no batches, and does not move where momentum is None
        return 0.0 if self.momentum is None else self.momentum

    def _check_channels(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise InputError("a floating input", f"{x.dtype}", "type: x.float()")
        if x.shape[1] != self.num_features and (self.affine or self.track_running_stats):
            raise InputError(
                f"{self.num_features} channels on axis 1",
                f"an input of shape {tuple(x.shape)}",
                f"type: {type(self).__name__}({x.shape[1]})",
            )

    def _evaluate(self, x: Tensor, mask: Tensor | None) -> Tensor:
        wide = x.float() if x.dtype in HALVES else x
        buffers = (in_type(self.running_mean, wide), in_type(self.running_var, wide))
        y = F.batch_norm(wide, *buffers, in_type(self.weight, wide), in_type(self.bias, wide), False, 0.0, self.eps)
        return (y if mask is None else y * mask.unsqueeze(1)).to(x.dtype)


class InstanceNorm1d(Instance, nn.InstanceNorm1d):
    """InstanceNorm over `(batch, channels, length)`."""


class InstanceNorm2d(Instance, nn.InstanceNorm2d):
    """InstanceNorm over `(batch, channels, height, width)`."""


class InstanceNorm3d(Instance, nn.InstanceNorm3d):
    """InstanceNorm over `(batch, channels, depth, height, width)`."""


for _member, _batch in ((InstanceNorm1d, "2, 3, 9"), (InstanceNorm2d, "2, 3, 4, 4"), (InstanceNorm3d, "2, 3, 2, 4, 4")):
    _member.__doc__ = f"{_member.__doc__}\n{_CARD.format(name=_member.__name__, shape=_batch)}"
