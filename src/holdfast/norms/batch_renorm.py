"""`BatchRenorm`: BatchNorm corrected towards its running statistics, so that training computes what evaluation will."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from holdfast.core.errors import InputError
from holdfast.norms.batch_norm import Batch, check_channels
from holdfast.norms.masked import Mask, masked_norm
from holdfast.norms.normaliser import HALVES, empty, in_type, is_wrapped, recomputing
from holdfast.norms.spec import NormSpec, affine_of

_PASSES = 16
"""Passes whose corrections are kept: as many micro-batches may wait for their backward under checkpointing."""


class BatchRenorm(Batch, _BatchNorm):
    r"""BatchNorm whose output is corrected by how far the batch's statistics are from the running ones.

    In training y = γ · (x̂ · r + d) + β, with x̂ = (x − μ_B) / σ_B, r = σ_B / σ clipped to [1/r_max, r_max] and
    d = (μ_B − μ) / σ clipped to [−d_max, d_max]; μ and σ = √(σ² + ε) are the running ones before this batch, and no
    gradient passes through r and d. In evaluation as BatchNorm.

    What it does:
        Within the clips the output is (x − μ) / σ: the function of evaluation, while the gradient still sees the
        batch. During the warm-up r_max is 1 and d_max 0, which is BatchNorm; then both grow to their ends.

    Why it matters:
        With small or dependent batches BatchNorm trains one function and evaluates another. This closes the gap and
        keeps BatchNorm's advantages.

    When it is wrong:
        With batches of 32 and more it gains nothing. Early, before the running statistics have settled, it can
        diverge: that is what the warm-up is for. With batches of 1 sample and no positions, take GroupNorm.

    Example:
        >>> norm = BatchRenorm(1, warm_up=(0, 0, 0), affine=False, momentum=0.0)
        >>> norm(torch.tensor([[1.0], [2.0]])).round(decimals=3).flatten()  # running mean 0, variance 1
        tensor([1., 2.])

    What to do:
        `model.norm = BatchRenorm(width)` where `torch.nn.BatchNorm2d(width)` stood (1d and 3d too): settings and
        state_dict keys are the same, and checkpoints load both ways.

    Args:
        num_features: channels, on axis 1 of the input.
        eps: ε, added to variances.
        momentum: m, of the running statistics; the paper's is 0.01.
        affine: whether γ (`weight`) and β (`bias`) are learnt.
        track_running_stats: must be True.
        device: of parameters and buffers.
        dtype: of parameters.
        r_max: the end of r's clip, at least 1.
        d_max: the end of d's clip, at least 0.
        warm_up: batches before the clips open, and those at which r_max and d_max are reached.

    Raises:
        InputError: clips or a warm-up that are none, or no running statistics.

    References:
        Ioffe, Batch Renormalization, 2017, arXiv:1702.03275.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warm_up: tuple[int, int, int] = (5_000, 40_000, 25_000),
    ) -> None:
        if not track_running_stats:
            raise InputError("running statistics", "track_running_stats=False", "type: BatchNorm2d, which needs none")
        if r_max < 1 or d_max < 0:
            raise InputError("r_max of 1 or more and d_max of 0 or more", f"{r_max} and {d_max}", "the paper's: 3, 5")
        if not 0 <= warm_up[0] <= min(warm_up[1:]):
            raise InputError(
                "batches before the clips open, and at which each is open",
                f"{warm_up}",
                "the paper's: (5000, 40000, 25000)",
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.r_max, self.d_max, self.warm_up = float(r_max), float(d_max), warm_up

    @property
    def spec(self) -> NormSpec:
        """What BatchNorm computes; the correction towards the running statistics is in `forward`."""
        affine = affine_of(self.weight)
        return NormSpec("renorm", ("samples", "positions"), affine=affine, state="running")

    def forward(self, x: Shaped[Tensor, "*shape"], mask: Mask | None = None) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(batch, channels, *positions)`.
            mask: `(batch, *positions)`, True where x counts; the output is 0 elsewhere. `None`: everything counts.

        Returns:
            The same shape, type and layout.

        Raises:
            ValueError: fewer than 2 axes, or (in training) one value a channel.
            InputError: other than `num_features` channels, or no floating type.
        """
        if not self.training:
            return super().forward(x, mask)
        self._check_input_dim(x)
        check_channels(x, self.num_features, "BatchRenorm")
        if x.numel() == 0:
            return empty(x, self.weight, self.bias)
        count = x.numel() / x.shape[1]
        if count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        over = self._over(x)
        if mask is None:
            hat, kept = self._over_channels(x, None, None, self.eps, over)
            mean, variance = kept.moments()
        else:
            hat, mean, variance, counts = masked_norm(x, mask, None, None, self.eps, over)
            self._note(self._keeping(), mean, variance)
            count = float(counts.sum())
        r, d = self._remembered(mean[0], variance[0])
        self._moved(mean, variance, count, over)
        y = self._corrected(hat, r, d)
        return y if mask is None else y.masked_fill(~mask.unsqueeze(1), 0.0)

    def _remembered(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The corrections; where checkpointing does a pass again, those of the first time.

        By then the running statistics have moved, but the batch's are the same to the bit: they find what was kept.
        """
        if torch.compiler.is_compiling() or mean.device.type != "cpu" or is_wrapped(mean):
            return self._corrections(mean, variance)
        key = mean.detach().numpy().tobytes()
        if recomputing() and key in self._passes:
            return self._passes[key]
        found = self._corrections(mean, variance)
        kept = {**self._passes, key: found}
        self.__dict__["_passes"] = dict(list(kept.items())[-_PASSES:])
        return found

    _passes: Mapping[bytes, tuple[Tensor, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_passes"}

    def clips(self) -> tuple[float, float]:
        """r_max and d_max at this batch.

        Returns:
            1 and 0 at first, then growing in a straight line to their ends.
        """
        r_max, d_max = self._clips()
        return float(r_max), float(d_max)

    def _clips(self) -> tuple[Tensor, Tensor]:
        assert self.num_batches_tracked is not None
        begin, *ends = self.warm_up
        seen = self.num_batches_tracked.double()
        opened = [torch.where(seen >= end, 1.0, ((seen - begin) / max(1, end - begin)).clamp(0.0, 1.0)) for end in ends]
        return 1.0 + opened[0] * (self.r_max - 1.0), opened[1] * self.d_max

    @torch.no_grad()
    def _corrections(self, mean: Tensor, variance: Tensor) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
        assert self.running_mean is not None
        assert self.running_var is not None
        r_max, d_max = (each.to(mean.dtype) for each in self._clips())
        sd = (self.running_var.to(mean.dtype) + self.eps).sqrt()
        r = ((variance + self.eps).sqrt() / sd).clamp(1.0 / r_max, r_max)
        d = ((mean - self.running_mean) / sd).clamp(-d_max, d_max)
        return r, d

    def _corrected(self, hat: Tensor, r: Tensor, d: Tensor) -> Tensor:
        wide = hat.float() if hat.dtype in HALVES else hat
        weight, bias = in_type(self.weight, wide), in_type(self.bias, wide)
        gain, level = r.to(wide.dtype), d.to(wide.dtype)
        if weight is not None:
            gain, level = gain * weight, level * weight
        if bias is not None:
            level = level + bias
        shape = (1, -1) + (1,) * (hat.ndim - 2)
        return torch.addcmul(level.view(shape), wide, gain.view(shape)).to(hat.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
