"""`BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d`: each channel centred and scaled by the statistics of the batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.kernels.normalise import Channels, takes
from holdfast.norms.masked import Mask, masked_norm
from holdfast.norms.normaliser import HALVES, Normaliser, empty, recomputing
from holdfast.norms.running import Tracked, check_momentum
from holdfast.norms.spec import Axis, NormSpec, affine_of

_PLANES = 1 << 19
"""Bytes from which the kernel is the faster one, for contiguous tensors."""

_COLUMNS = 1 << 22
"""The same for channels_last."""

_CARD = """
    In training y = γ · (x − μ) / √(σ² + ε) + β, with the mean and the biased variance of a channel over the batch and
    all positions; in evaluation the same with the running ones, which move by m at every batch (the variance by the
    unbiased one).

    What it does:
        Fixes the first two moments of every channel, whatever the layers before it do, and makes the loss blind to
        the length of the weights before it.

    Why it matters:
        Higher learning rates, and less care about initialisation: the normaliser of most convolutional networks.

    When it is wrong:
        Below about 8 samples a batch the statistics are noise: take GroupNorm or BatchRenorm, or freeze them. In
        recurrence each time step would need its own (RecurrentBatchNorm). With batches of unlike domains the moments
        are of the mixture (DomainBatchNorm). In a GAN's discriminator, or where one sample's gradient must not depend
        on the others (gradient penalties), take LayerNorm. In transformers padding and few samples make it worse than
        LayerNorm and RMSNorm.

    Example:
        >>> norm = {name}(3)
        >>> bool(norm(torch.randn({shape})).mean().abs() < 1e-6)
        True
        >>> sorted(norm.telemetry())
        ['mean', 'variance']

    What to do:
        `model.norm = {name}(width)` where `torch.nn.{name}(width)` stood: constructor, defaults, errors and
        state_dict keys are the same, and checkpoints load both ways.

    It differs from `torch.nn.{name}` in this: running statistics stay float32 through `.half()` and `.bfloat16()`;
    they move once under activation checkpointing, and once a step within `norms.accumulate(model, optimizer)`; an
    empty batch gives an empty output and leaves them alone; `mask` leaves padding out.

    Args:
        num_features: channels, on axis 1 of the input.
        eps: ε, added to the variance.
        momentum: m, of the running statistics; `None` is the average over all batches.
        affine: whether γ (`weight`) and β (`bias`) are learnt.
        track_running_stats: without it, evaluation uses the statistics of its batch.
        device: of parameters and buffers.
        dtype: of parameters.

    Raises:
        InputError: m outside [0, 1], or ε below 0.

    References:
        Ioffe and Szegedy, Batch Normalization, 2015, arXiv:1502.03167.
"""


class Batch(Normaliser, Tracked):
    """What the three have in common."""

    num_features: int
    eps: float
    training: bool
    track_running_stats: bool

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
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
        over: tuple[Axis, ...] = ("samples", "positions")
        return NormSpec("batch", over, affine=affine, bias=self.bias is not None, state="running")

    def forward(self, x: Shaped[Tensor, "*shape"], mask: Mask | None = None) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(batch, channels, *positions)`.
            mask: `(batch, *positions)`, True where x counts; the output is 0 elsewhere. `None`: everything counts.

        Returns:
            The same shape, type and layout.

        Raises:
            ValueError: other than the expected axes, or (in training) one value a channel, as torch's.
            InputError: other than `num_features` channels, or no floating type.
        """
        self._check_input_dim(x)  # type: ignore[attr-defined]
        channels, values = x.shape[1], x.numel()
        if channels != self.num_features or not x.is_floating_point():
            check_channels(x, self.num_features, type(self).__name__)
        weight, bias = self._affine()
        if values == 0:
            return empty(x, weight, bias)
        if not self.training and (self.running_mean is not None or self.running_var is not None):
            return self._evaluate(x, mask)
        if values == channels:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        if mask is None and weight is not None and self._torch_serves(x):
            return self._by_torch(x, values / channels)
        over, count = self._over(x), values / channels
        if mask is None:
            y, kept = self._over_channels(x, weight, bias, self.eps, over)
        else:
            y, mean, variance, counts = masked_norm(x, mask, weight, bias, self.eps, over)
            kept = self._keeping()
            self._note(kept, mean, variance)
            count = float(counts.sum())
        if self.training and self.track_running_stats:
            self._moved(*kept.moments(), count, over)
        return y

    def _over(self, x: Tensor) -> Channels:
        return Channels(x.shape[1], (0, len(x)))

    def _moved(self, mean: Tensor, variance: Tensor, count: float, over: Channels) -> None:
        """Take the batch's statistics into the running ones."""
        self._track(mean[0], variance[0], count)

    def _torch_serves(self, x: Tensor) -> bool:
        """Whether torch's own operation is the faster one: a small tensor on the CPU, or another device."""
        return not torch.compiler.is_compiling() and not takes(x, _PLANES if x.is_contiguous() else _COLUMNS)

    def _by_torch(self, x: Tensor, count: float) -> Tensor:
        """By torch's operation, which moves the running statistics itself, and hands out the batch's."""
        mean, variance = self._buffers["running_mean"], self._buffers["running_var"]
        tracks = self.training and self.track_running_stats and mean is not None and variance is not None
        direct = tracks and self._pool is None
        momentum = 0.0
        if not direct:
            mean = variance = None
        elif recomputing():  # a checkpoint counts the tensors that are saved: as many as the first time
            assert mean is not None
            assert variance is not None
            mean, variance = mean.clone(), variance.clone()
        else:
            momentum = float(self._next_momentum())
        weight, bias = self._parameters_for(x)
        y, mean, rate = torch.native_batch_norm(x, weight, bias, mean, variance, True, momentum, self.eps)
        kept = self._keeping()
        kept.take(y, mean, rate, self.eps, self._listened)
        if tracks and not direct:
            self._track(*kept.moments(), count)
        return y

    def _parameters_for(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """γ and β in a type that torch mixes with x: the same, or float32 for halves."""
        weight, bias = self._affine()
        dtype = torch.float32 if x.dtype in HALVES else x.dtype
        if weight is not None and weight.dtype is not dtype:
            weight = weight.to(dtype)
        return weight, bias if bias is None or bias.dtype is dtype else bias.to(dtype)

    def _evaluate(self, x: Tensor, mask: Tensor | None) -> Tensor:
        dtype = torch.float32 if x.dtype in HALVES else x.dtype  # also where somebody has narrowed the buffers
        mean, variance = (None if each is None else each.to(dtype) for each in (self.running_mean, self.running_var))
        weight, bias = self._parameters_for(x)
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, self.eps)
        return y if mask is None else y * mask.unsqueeze(1)


def check_channels(x: Tensor, channels: int, name: str) -> None:
    """Refuse an input of other channels, or of a type that cannot be normalised.

    Args:
        x: with channels on axis 1.
        channels: as many as expected.
        name: of the layer, for the line to type.

    Raises:
        InputError: one of the two.
    """
    if x.shape[1] != channels:
        raise InputError(
            f"{channels} channels on axis 1",
            f"an input of shape {tuple(x.shape)}",
            f"type: {name if '(' in name else f'{name}('}{x.shape[1]})",
        )
    if not x.is_floating_point():
        raise InputError("a floating input", f"{x.dtype}", "type: x.float()")


class BatchNorm1d(Batch, nn.BatchNorm1d):
    """BatchNorm over `(batch, channels)` or `(batch, channels, length)`."""


class BatchNorm2d(Batch, nn.BatchNorm2d):
    """BatchNorm over `(batch, channels, height, width)`."""


class BatchNorm3d(Batch, nn.BatchNorm3d):
    """BatchNorm over `(batch, channels, depth, height, width)`."""


for _member, _batch in ((BatchNorm1d, "8, 3"), (BatchNorm2d, "8, 3, 4, 4"), (BatchNorm3d, "8, 3, 2, 4, 4")):
    _member.__doc__ = f"{_member.__doc__}\n{_CARD.format(name=_member.__name__, shape=_batch)}"
