"""`BatchLayerNorm`: a mix of BatchNorm and LayerNorm whose share follows the batch size, or is learnt."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm

from holdfast.core.errors import InputError
from holdfast.kernels.normalise import Channels, Kept
from holdfast.norms.batch_norm import Batch, check_channels
from holdfast.norms.normaliser import HALVES, empty, in_type, recomputing
from holdfast.norms.spec import NormSpec, affine_of


class BatchLayerNorm(Batch, _BatchNorm):
    r"""BatchNorm where batches are large enough for it, LayerNorm where they are not, and a mix between.

    y = γ · (w · x̂_batch + (1 − w) · x̂_layer) + β, with x̂_layer by the mean and variance of one sample over channels
    and positions. With `gate="batch"` w = (b − 1) / (b − 1 + κ) for b samples, and its running average in evaluation;
    with `gate="learned"` w = sigmoid(ω), ω learnt, one a layer.

    What it does:
        The noise of a batch statistic falls as 1/b, and w with it: a batch of 1 is LayerNorm, a large one BatchNorm,
        and the last odd batch of an epoch does no harm.

    Why it matters:
        One layer for training with large batches and fine-tuning with small ones.

    When it is wrong:
        Where the batch size is fixed and large, BatchNorm alone is cheaper and can be folded away. It costs both
        statistics. A w that follows the batch changes the function when the batch size changes: keep it constant
        within a run, or learn it.

    Example:
        >>> norm = BatchLayerNorm(2, affine=False, kappa=8.0)
        >>> norm(torch.tensor([[1.0, 3.0]])).round(decimals=3)  # one sample: LayerNorm
        tensor([[-1.,  1.]])
        >>> norm.share(9)
        0.5

    What to do:
        `model.norm = BatchLayerNorm(width)` where `torch.nn.BatchNorm2d(width)` stood (1d and 3d too).

    Args:
        num_features: channels, on axis 1 of the input.
        eps: ε, added to variances.
        momentum: m, of the running statistics and of the running w; `None` is the average over all batches.
        affine: whether γ (`weight`) and β (`bias`) are learnt.
        track_running_stats: must be True.
        device: of parameters and buffers.
        dtype: of parameters.
        gate: what w follows.
        kappa: κ, the b − 1 at which both have the same share.

    Raises:
        InputError: κ of 0 or less, another gate, or no running statistics.

    References:
        Ziaee and Çano, Batch Layer Normalization, 2022, arXiv:2209.08898 (the mix by batch size).
        Luo et al., Differentiable Learning-to-Normalize via Switchable Normalization, 2018, arXiv:1806.10779 (learnt).
    """

    gate_logit: Parameter | None
    running_share: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        gate: Literal["batch", "learned"] = "batch",
        kappa: float = 8.0,
    ) -> None:
        if not track_running_stats:
            raise InputError("running statistics", "track_running_stats=False", "type: LayerNorm, which needs none")
        if not kappa > 0:
            raise InputError("kappa above 0", f"{kappa}", "8 is the default")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.gate, self.kappa = gate, float(kappa)
        learned = gate == "learned"
        self.gate_logit = Parameter(torch.zeros((), device=device, dtype=dtype)) if learned else None
        self.register_buffer("running_share", torch.ones((), device=device) if not learned else None)

    def reset_parameters(self) -> None:
        """γ of ones, β of zeros, both halves equal where the share is learnt, and no batch seen."""
        super().reset_parameters()
        if self._parameters.get("gate_logit") is not None:  # the constructor of torch's class calls before there is one
            torch.nn.init.zeros_(self._parameters["gate_logit"])
        share = self._buffers.get("running_share")
        if share is not None:
            share.fill_(1.0)

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        affine = affine_of(self.weight)
        parts = (
            NormSpec("batch", ("samples", "positions"), state="running"),
            NormSpec("layer", ("channels", "positions")),
        )
        return NormSpec("batch-layer", (), affine=affine, state="running", mix=parts, mixes="outputs")

    def share(self, samples: int) -> float:
        """BatchNorm's share w.

        Args:
            samples: of the batch; not read where w is learnt, nor in evaluation.

        Returns:
            In [0, 1].
        """
        if self.gate_logit is not None:
            return float(self.gate_logit.detach().sigmoid())
        return (samples - 1) / (samples - 1 + self.kappa) if self.training else float(self.running_share)

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:  # type: ignore[override]
        """Normalise.

        Args:
            x: `(batch, channels, *positions)`.

        Returns:
            The same shape, type and layout.

        Raises:
            ValueError: fewer than 2 axes.
            InputError: other than `num_features` channels, a sample of one value, or no floating type.
        """
        self._check_input_dim(x)
        check_channels(x, self.num_features, "BatchLayerNorm")
        if x.numel() == 0:
            return empty(x, self.weight, self.bias)
        if x[0].numel() == 1:
            raise InputError("samples of 2 values or more", f"an input of shape {tuple(x.shape)}", "take BatchNorm1d")
        given = x.dtype
        x = x.float() if given in HALVES else x  # the mix of two outputs is rounded once
        layer = self._layer(x)
        if self.gate_logit is not None:
            share: Any = self.gate_logit.sigmoid().to(layer.dtype)
        else:
            share = self.share(len(x)) if self.training else self.running_share.to(layer.dtype)
        if self.training and x.numel() == x.shape[1]:  # one value a channel: the batch has no variance
            hat = layer if self.gate_logit is None else (1.0 - share) * layer
        else:
            hat = torch.lerp(layer, self._batch(x), share)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        for parameter, join in ((self.weight, torch.mul), (self.bias, torch.add)):
            hat = hat if parameter is None else join(hat, in_type(parameter, hat).view(shape))  # type: ignore[union-attr]
        return hat.to(given)

    def _layer(self, x: Tensor) -> Tensor:
        kept: Kept | None = self._kept
        hat, _ = self._over_channels(x, None, None, self.eps, Channels(1, range(len(x) + 1)))
        self._kept = kept  # what is told are the batch's statistics
        return hat

    def _batch(self, x: Tensor) -> Tensor:
        if not self.training:
            assert self.running_mean is not None
            assert self.running_var is not None
            shape = (1, -1) + (1,) * (x.ndim - 2)
            rate = (self.running_var.to(x.dtype) + self.eps).rsqrt()
            return (x - self.running_mean.to(x.dtype).view(shape)) * rate.view(shape)
        over = self._over(x)
        hat, kept = self._over_channels(x, None, None, self.eps, over)
        if self.gate_logit is None and not recomputing():
            total, batches = self._shares
            self._shares = (total + self.share(len(x)), batches + 1)
        self._moved(*kept.moments(), x.numel() / x.shape[1], over)
        return hat

    _shares = (0.0, 0)
    """Sum and number of the shares since the running statistics moved."""

    def _move(self, mean: Tensor, unbiased: Tensor) -> None:
        super()._move(mean, unbiased)
        if self.gate_logit is not None:
            return
        assert self.num_batches_tracked is not None
        seen = self.num_batches_tracked.to(self.running_share)
        momentum = seen.reciprocal() if self.momentum is None else torch.where(seen <= 1, 1.0, self.momentum)
        total, batches = self._shares
        self.running_share.lerp_(self.running_share.new_tensor(total / max(batches, 1)), momentum)
        self._shares = (0.0, 0)

    def extra_repr(self) -> str:
        """BatchNorm's settings and the gate."""
        settings = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{settings}, gate={self.gate!r}, kappa={self.kappa}"

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
