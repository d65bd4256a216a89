"""`GhostBatchNorm`: BatchNorm whose statistics come from chunks of the batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from holdfast.core.errors import InputError
from holdfast.kernels.normalise import Channels
from holdfast.norms.batch_norm import Batch
from holdfast.norms.spec import NormSpec


class GhostBatchNorm(Batch, _BatchNorm):
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
        >>> norm.telemetry()["mean"].flatten().tolist()
        [1.0, 150.0]

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

    @property
    def spec(self) -> NormSpec:
        """What is computed."""
        return replace(super().spec, name="ghost", chunk=self.chunk_size)

    def extra_repr(self) -> str:
        """BatchNorm's settings and the size of chunks."""
        settings = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{settings}, chunk_size={self.chunk_size}"

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def _over(self, x: Tensor) -> Channels:
        chunks = max(1, len(x) // self.chunk_size) if self.training else 1
        size, more = divmod(len(x), chunks)
        sizes = [size + (chunk < more) for chunk in range(chunks)]
        return Channels(x.shape[1], tuple(accumulate([0, *sizes])))

    def _torch_serves(self, x: Tensor) -> bool:
        return len(self._over(x).bounds) == 2 and super()._torch_serves(x)

    def _moved(self, mean: Tensor, variance: Tensor, count: float, over: Channels) -> None:
        """Move the running statistics once, each chunk with the weight of its values."""
        sizes = [end - start for start, end in pairwise(over.bounds)]
        counts = mean.new_tensor(sizes).unsqueeze(1) * (count / over.bounds[-1])
        # Pooled within chunks: Σ nᵢ σᵢ² / (n − k), of which `_track` expects (n − 1) / n.
        within = (variance * counts).sum(0) / (count - len(sizes)) * ((count - 1) / count)
        self._track((mean * counts).sum(0) / count, within, count)
