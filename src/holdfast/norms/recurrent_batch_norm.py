"""`RecurrentBatchNorm`: BatchNorm for recurrent networks, with statistics of its own for each time step."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from holdfast.core.errors import InputError
from holdfast.kernels.normalise import Channels
from holdfast.norms.normaliser import HALVES, Normaliser, in_type
from holdfast.norms.running import check_momentum
from holdfast.norms.running_rows import TrackedRows
from holdfast.norms.spec import NormSpec, affine_of


class RecurrentBatchNorm(Normaliser, TrackedRows, nn.Module):
    r"""BatchNorm whose statistics belong to a time step, while γ and β serve all of them.

    In training y_t = γ · (h_t − μ_t) / √(σ²_t + ε) + β, with the mean and the biased variance of each feature over the
    batch at step t; in evaluation with the running ones of step t, as BatchNorm's.

    What it does:
        Steps 0 to `max_steps` − 1 have running statistics of their own; later ones share the last, and so do steps
        that no training sequence reached. γ begins at 0.1, so that a tanh behind it keeps its gradient. Rows that
        `mask` leaves out count in no statistic and come out as 0.

    Why it matters:
        A recurrent state starts at a constant and settles over the first steps: one set of statistics for all steps
        describes none of them, and the error comes back at every step. Trained like this, an LSTM's recurrent
        connections can be normalised too.

    When it is wrong:
        With small batches, or with few sequences left at late steps: take LayerNorm, which needs no other sample.
        Where sequences are not aligned at their start, "step t" means nothing. For sequences that are seen at once
        and in no order that matters (transformers) take RMSNorm.

    Example:
        >>> norm = RecurrentBatchNorm(1, max_steps=2, gain=1.0)
        >>> norm(torch.tensor([[0.0], [2.0]]), step=0).detach().round(decimals=3).flatten()
        tensor([-1.,  1.])
        >>> norm(torch.tensor([[10.0], [30.0]]), step=1).detach().round(decimals=3).flatten()
        tensor([-1.,  1.])
        >>> (norm.running_mean / norm.momentum).flatten()
        tensor([ 1., 20.])

    What to do:
        In an LSTM cell three of them, without β where the gates have a bias: `gates = norm_h(h @ W_h, step) +
        norm_x(x @ W_x, step) + b`, and `h = o * torch.tanh(norm_c(c, step))`. A whole sequence at once:
        `norm_x(sequence, mask=mask)`.

    With a mask, a step at which fewer than 2 rows count is normalised by the running statistics and moves none: the
    tail of the longest sequence of a batch is no reason to stop.

    Args:
        num_features: features, on the last axis of the input.
        max_steps: steps that have running statistics of their own.
        eps: ε, added to the variance.
        momentum: m, of the running statistics; `None` is the average over all batches.
        affine: whether γ (`weight`) and β (`bias`) are learnt, one value a feature.
        track_running_stats: without it, evaluation uses the statistics of its batch.
        bias: whether there is a β.
        gain: γ at first.
        device: of parameters and buffers.
        dtype: of parameters.

    Raises:
        InputError: fewer than 1 feature or step, m outside [0, 1], or ε below 0.

    References:
        Cooijmans et al., Recurrent Batch Normalization, 2016, arXiv:1603.09025.
    """

    def __init__(
        self,
        num_features: int,
        max_steps: int = 100,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        bias: bool = True,
        gain: float = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_momentum(momentum, eps)
        if num_features < 1 or max_steps < 1:
            raise InputError("1 feature and 1 step or more", f"{num_features} and {max_steps}", "type: max_steps=100")
        self.num_features, self.max_steps, self.eps, self.momentum = num_features, max_steps, eps, momentum
        self.track_running_stats, self.gain = track_running_stats, float(gain)
        kind = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.full((num_features,), self.gain, **kind)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, **kind)) if affine and bias else None
        self._register_rows(max_steps, num_features, device, track_running_stats)

    def reset_parameters(self) -> None:
        """As the constructor left it."""
        for each, start in ((self.weight, self.gain), (self.bias, 0.0)):
            if each is not None:
                nn.init.constant_(each, start)
        self.reset_running_stats()

    @property
    def spec(self) -> NormSpec:
        """What is computed; the positions are time steps."""
        affine, bias = affine_of(self.weight), self.bias is not None
        return NormSpec("recurrent-batch", ("samples",), affine=affine, bias=bias, state="running", features_last=True)

    def forward(self, h: Shaped[Tensor, "*shape"], step: Any = 0, mask: Any = None) -> Shaped[Tensor, "*shape"]:
        """Normalise one step, or a whole sequence.

        Args:
            h: `(batch, features)`, or `(batch, time, features)`.
            step: the time step of h, from 0; of a sequence its first one.
            mask: `(batch,)` or `(batch, time)`, True where h counts; the output is 0 elsewhere. `None`: all count.

        Returns:
            The same shape and type; halves are computed in float32.

        Raises:
            InputError: other axes or features, no floating type, no step, another mask, or (by the statistics of the
                batch, without a mask) a batch of 1.
        """
        self._check(h, step, mask)
        if h.numel() == 0:
            return self._scaled(h)
        x = h.unsqueeze(1) if h.dim() == 2 else h
        valid = None if mask is None else mask.reshape(*x.shape[:2], 1)
        if self._runs():
            y = self._evaluated(x, step, valid)
        elif valid is None:
            y = self._trained(x, step)
        else:
            y = self._masked(x, step, valid)
        return y.reshape(h.shape)

    def _runs(self) -> bool:
        """Whether the running statistics are used."""
        return not self.training and self.running_mean is not None

    def _trained(self, x: Tensor, first: int) -> Tensor:
        batch, steps, features = x.shape
        # Steps and features together are the channels of a BatchNorm.
        weight, bias = (each if each is None else each.repeat(steps) for each in (self.weight, self.bias))
        over = Channels(steps * features, (0, batch))
        y, kept = self._over_channels(x.reshape(batch, -1), weight, bias, self.eps, over)
        if self.training and self.track_running_stats:
            mean, variance = (each.reshape(steps, features) for each in kept.moments())
            self._take(first, mean, variance, mean.new_full((steps,), batch))
        return y.reshape(x.shape)

    def _masked(self, x: Tensor, first: int, valid: Bool[Tensor, "b t 1"]) -> Tensor:
        wide = (x.float() if x.dtype in HALVES else x).masked_fill(~valid, 0.0)
        counts = valid.sum(0).to(wide.dtype)
        mean = wide.sum(0) / counts.clamp(min=1)
        variance = (wide - mean).masked_fill(~valid, 0.0).square().sum(0) / counts.clamp(min=1)
        self._note(self._keeping(), mean, variance)
        used: tuple[Tensor, ...] = (mean, variance)
        if self.training and self.running_mean is not None:
            self._take(first, mean, variance, counts.squeeze(-1))  # first: a pass done again sees the same running ones
            running = self._running(first, x.shape[1], wide.dtype)
            used = tuple(torch.where(counts > 1, own, old) for own, old in zip(used, running, strict=True))
        return self._by(wide, *used).masked_fill(~valid, 0.0).to(x.dtype)

    def _evaluated(self, x: Tensor, first: int, valid: Tensor | None) -> Tensor:
        wide = x.float() if x.dtype in HALVES else x
        wide = wide if valid is None else wide.masked_fill(~valid, 0.0)
        y = self._by(wide, *self._running(first, x.shape[1], wide.dtype))
        return (y if valid is None else y.masked_fill(~valid, 0.0)).to(x.dtype)

    def _running(self, first: int, steps: int, dtype: torch.dtype) -> tuple[Float[Tensor, "t f"], Float[Tensor, "t f"]]:
        """Copies of the running statistics of some steps: their own, else those of the last step that has any."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        every = torch.arange(self.max_steps, device=self.running_mean.device)
        last = (every * (self.num_batches_tracked > 0)).max()
        rows = torch.arange(first, first + steps, device=every.device).minimum(last)
        return self.running_mean[rows].to(dtype), self.running_var[rows].to(dtype)

    def _by(self, wide: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return self._scaled((wide - mean) * (variance + self.eps).rsqrt())

    def _scaled(self, y: Tensor) -> Tensor:
        weight, bias = in_type(self.weight, y), in_type(self.bias, y)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def _take(self, first: int, mean: Tensor, variance: Tensor, counts: Tensor) -> None:
        """Move the rows of steps that have their own at once, then the last one by each later step."""
        own = max(0, min(self.max_steps - first, len(mean)))
        if own:
            self._track_rows(slice(first, first + own), mean[:own], variance[:own], counts[:own])
        for t in range(own, len(mean)):
            later = slice(t, t + 1)
            self._track_rows(slice(self.max_steps - 1, None), mean[later], variance[later], counts[later])

    def _check(self, h: Tensor, step: Any, mask: Any) -> None:
        if h.dim() not in (2, 3):
            raise InputError(
                "(batch, features) or (batch, time, features)",
                f"a {h.dim()}D input of shape {tuple(h.shape)}",
                "flatten positions into the batch, or type: BatchNorm2d",
            )
        if h.shape[-1] != self.num_features:
            fix = f"type: RecurrentBatchNorm({h.shape[-1]})"
            raise InputError(f"{self.num_features} features on the last axis", f"a shape of {tuple(h.shape)}", fix)
        if not h.is_floating_point():
            raise InputError("a floating input", f"{h.dtype}", "type: h.float()")
        if isinstance(step, bool) or not isinstance(step, (int, torch.SymInt)) or step < 0:
            raise InputError("a time step, an int of 0 or more", f"step={step!r}", "type: norm(h, step=t)")
        rows = tuple(h.shape[:-1])
        if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != rows):
            got = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise InputError(f"a bool mask of shape {rows}", got, "True where h counts: mask = t < lengths")
        if mask is None and not self._runs() and len(h) == 1 and h.numel():
            raise InputError("more than 1 row at a step", f"{tuple(h.shape)}", "take LayerNorm")

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.num_features}, max_steps={self.max_steps}, eps={self.eps}, momentum={self.momentum}"
