"""`GhostBatchNorm`: BatchNorm whose statistics come from chunks of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from holdfast.core.errors import InputError

_HALVES = (torch.bfloat16, torch.float16)


class GhostBatchNorm(_BatchNorm):
    r"""BatchNorm that normalises each chunk of a batch by its own mean and variance.

    In training, for chunk l of k: y = γ · (x − μ_l) / √(σ²_l + ε) + β, with the chunk's biased variance; in
    evaluation with the running ones, as BatchNorm.

    What it does:
        Keeps the noise of small batches, which regularises, while the batch grows. Chunks are as even as can be and
        none is smaller than `chunk_size`, so that no tail of one sample is left; a batch below `2 · chunk_size` is one
        chunk, and the layer is BatchNorm. The running statistics move once a batch, each chunk with its share of the
        momentum: (1 − m) · old + m · Σ (n_l/n) · μ_l, and for the variance the unbiased ones, pooled. So the old
        keeps the weight that it has in BatchNorm, whatever the number of chunks.

    Why it matters:
        Training with large batches loses accuracy on new data; a part of the loss is the noise that BatchNorm's
        statistics no longer have.

    When it is wrong:
        With small batches it is plain BatchNorm, at most noisier. It does not make statistics of two samples good:
        take GroupNorm there. Chunks are neighbours in the batch: sorted batches give chunks of one kind.

    Example:
        >>> norm = GhostBatchNorm(1, chunk_size=2, affine=False)
        >>> norm(torch.tensor([[0.0], [2.0], [100.0], [200.0]])).round(decimals=3).flatten()
        tensor([-1.,  1., -1.,  1.])
        >>> norm.running_mean / norm.momentum
        tensor([75.5000])
        >>> norm.telemetry()["mean"].flatten()
        tensor([  1., 150.])

    What to do:
        `model.norm = GhostBatchNorm(width, chunk_size=32)` where `torch.nn.BatchNorm2d(width)` stood (1d and 3d too):
        settings and state_dict keys are the same, and checkpoints load both ways. `swap-norm` with `to="ghost"` does
        it on a live model.

    It differs from `torch.nn.BatchNorm2d` besides chunks in two things: it is computed in float32 for half inputs, and
    its running statistics stay float32 through `.half()` and `.bfloat16()`. It differs from the paper in the running
    statistics: there the chunks of one batch are averaged exponentially, the last with the greatest weight.

    Args:
        num_features: channels, on axis 1 of the input.
        eps: ε, added to the variance.
        momentum: m, of the running statistics; `None` is the average over all batches.
        affine: whether γ (`weight`) and β (`bias`) are learnt.
        track_running_stats: without it, evaluation uses the statistics of its whole batch.
        device: of parameters and buffers.
        dtype: of parameters.
        chunk_size: fewest samples that share statistics, at least 2.

    Raises:
        InputError: `chunk_size` is not an integer of at least 2.

    References:
        Hoffer, Hubara and Soudry, Train longer, generalize better, 2017, arXiv:1705.08741, algorithm 1.
    """

    _telemetry: Mapping[str, Tensor] | None = None

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
        chunk_size: Any = 32,
    ) -> None:
        if not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 2:
            raise InputError(
                "chunks of 2 samples or more",
                f"chunk_size={chunk_size!r}",
                "the paper's is 32; for statistics of one sample take torch.nn.InstanceNorm2d or GroupNorm",
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.chunk_size = chunk_size
        if dtype in _HALVES:
            self._keep_statistics_wide(device)

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Normalise.

        Args:
            x: `(batch, channels)` or `(batch, channels, *positions)`.

        Returns:
            The same shape and type.

        Raises:
            ValueError: fewer than 2 axes, or (in training) one value per channel, as torch's.
        """
        self._check_input_dim(x)
        if x.numel() == 0:
            return self._empty(x)
        wide = x.float() if x.dtype in _HALVES else x
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            return self._norm(wide, mean, variance, mean is None and variance is None).to(x.dtype)
        chunks = wide.tensor_split(max(1, len(x) // self.chunk_size))
        if not self.track_running_stats or self.running_mean is None:
            return torch.cat([self._norm(chunk, None, None, True) for chunk in chunks]).to(x.dtype)
        means, variances, normed = [], [], []
        for chunk in chunks:
            # With momentum 1 torch leaves the chunk's mean and unbiased variance in the buffers, without another pass.
            means.append(torch.zeros_like(self.running_mean, dtype=wide.dtype))
            variances.append(torch.zeros_like(self.running_mean, dtype=wide.dtype))
            normed.append(self._norm(chunk, means[-1], variances[-1], True, momentum=1.0))
        self._track(torch.stack(means), torch.stack(variances), [len(chunk) for chunk in chunks], x[0, 0].numel())
        return torch.cat(normed).to(x.dtype)

    def telemetry(self) -> Mapping[str, Tensor]:
        """The statistics of the last forward pass in training, computed there and only kept.

        Returns:
            `{"mean": (chunks, channels), "variance": (chunks, channels)}`, the variance unbiased, in the input's unit
            and in its square; `{}` before the first pass and without running statistics.
        """
        return {} if self._telemetry is None else self._telemetry

    def extra_repr(self) -> str:
        """BatchNorm's settings and the size of chunks."""
        settings = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{settings}, chunk_size={self.chunk_size}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_telemetry"}

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def _norm(
        self, x: Tensor, mean: Tensor | None, variance: Tensor | None, from_batch: bool, momentum: float = 0.0
    ) -> Tensor:
        mean, variance, weight, bias = (
            None if each is None else each.to(x.dtype) for each in (mean, variance, self.weight, self.bias)
        )
        return F.batch_norm(x, mean, variance, weight, bias, from_batch, momentum, self.eps)

    def _track(self, means: Tensor, variances: Tensor, sizes: list[int], positions: int) -> None:
        """Move the running statistics once, each chunk with the weight of its values."""
        assert self.running_mean is not None
        assert self.running_var is not None
        counts = means.new_tensor(sizes).unsqueeze(1) * positions
        mean = (means * (counts / counts.sum())).sum(0)
        variance = (variances * ((counts - 1) / (counts - 1).sum())).sum(0)
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if momentum is None else momentum
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum or 0.0)
            self.running_var.lerp_(variance.to(self.running_var.dtype), momentum or 0.0)
        # A tensor of a graph under compilation must not outlive it.
        if not torch.compiler.is_compiling():
            self._telemetry = {"mean": means, "variance": variances}

    def _empty(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Nothing in, nothing out; γ and β get gradients of zero and the statistics stay."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        for parameter, join in ((self.weight, torch.mul), (self.bias, torch.add)):
            x = x if parameter is None else join(x, parameter.to(x.dtype).view(shape))
        return x

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GhostBatchNorm:
        before = {name: self._buffers[name] for name in ("running_mean", "running_var")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            present = self._buffers[name]
            if buffer is not None and present is not None and present.dtype in _HALVES:
                self._buffers[name] = buffer.to(present.device)
        return self

    def _keep_statistics_wide(self, device: Any) -> None:
        for name in ("running_mean", "running_var"):
            buffer = self._buffers[name]
            if buffer is not None:
                self._buffers[name] = buffer.float()
