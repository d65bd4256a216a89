"""`SyncBatchNorm`: BatchNorm by the statistics of all processes of a group, on CPUs too."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn

from holdfast.norms.batch_norm import Batch, check_channels
from holdfast.norms.normaliser import HALVES, in_type, recomputing
from holdfast.norms.spec import NormSpec, affine_of


class SyncBatchNorm(Batch, nn.SyncBatchNorm):
    r"""BatchNorm whose mean and variance are those of the batches of all processes together.

    With nᵢ values, mean μᵢ and squared distances mᵢ of process i: μ = Σ nᵢ μᵢ / n and
    σ² = (Σ mᵢ + Σ nᵢ (μᵢ − μ)²) / n, in one exchange forward and one (Σ dy, Σ dy · x̂) backward.

    What it does:
        What BatchNorm on one machine with the whole batch would do. Processes may hold batches of unlike size, or
        none.

    Why it matters:
        With 1 to 4 samples a process the statistics of each alone are noise.

    When it is wrong:
        Each layer waits for the slowest process twice a step. With 16 samples and more a process it gains little.
        GroupNorm needs no exchange at all.

    Example:
        >>> norm = SyncBatchNorm(1)  # in one process it is BatchNorm
        >>> norm(torch.tensor([[1.0], [3.0]])).detach().round(decimals=3).flatten()
        tensor([-1.,  1.])

    What to do:
        `SyncBatchNorm.convert_sync_batchnorm(model)` before DDP wraps it, or `sync-batchnorm` on a live model.

    It differs from `torch.nn.SyncBatchNorm` in this: it also runs on CPUs (gloo), and its running statistics move as
    those of our BatchNorm.

    Args:
        num_features: channels, on axis 1 of the input.
        eps: ε, added to the variance.
        momentum: m, of the running statistics; `None` is the average over all batches.
        affine: whether γ (`weight`) and β (`bias`) are learnt.
        track_running_stats: without it, evaluation uses the statistics of its batch.
        process_group: whose statistics are joined; `None` is all processes.
        device: of parameters and buffers.
        dtype: of parameters.

    References:
        Ioffe and Szegedy, Batch Normalization, 2015, arXiv:1502.03167.
        Peng et al., MegDet: A Large Mini-Batch Object Detector, 2017, arXiv:1711.07240.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, process_group=process_group
        )

    @property
    def spec(self) -> NormSpec:
        """What is computed, `samples` being those of all processes."""
        affine = affine_of(self.weight)
        return NormSpec("sync", ("samples", "positions"), affine=affine, state="running")

    def forward(self, x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:  # type: ignore[override]
        """Normalise; in training every process of the group must call.

        Args:
            x: `(batch, channels, *positions)`.

        Returns:
            The same shape, type and layout.

        Raises:
            ValueError: fewer than 2 axes, or (in training) one value a channel in all processes together.
            InputError: other than `num_features` channels, or no floating type.
        """
        own = self.training or (self.running_mean is None and self.running_var is None)
        if not (own and dist.is_available() and dist.is_initialized() and dist.get_world_size(self.process_group) > 1):
            return super().forward(x)
        self._check_input_dim(x)
        check_channels(x, self.num_features, "SyncBatchNorm")
        wide = x.float() if x.dtype in HALVES else x
        mean, variance, count = _joined(wide.detach(), self.process_group)
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")
        self._note(self._keeping(), mean.unsqueeze(0), variance.unsqueeze(0))
        if self.training and self.track_running_stats and not recomputing():
            self._track(mean, variance, count)
        group = self.process_group
        hat = _Synchronised.apply(wide, mean, variance, self.eps, count, group)  # type: ignore[no-untyped-call]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        for parameter, join in ((self.weight, torch.mul), (self.bias, torch.add)):
            hat = hat if parameter is None else join(hat, in_type(parameter, hat).view(shape))  # type: ignore[union-attr]
        return hat.to(x.dtype)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Replace every BatchNorm in a model by this one, sharing its parameters and buffers.

        Args:
            module: the model, or a BatchNorm.
            process_group: whose statistics are joined; `None` is all processes.

        Returns:
            The model, changed in place; or, of a BatchNorm, its replacement.
        """
        made = module
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, cls):
            settings = (module.eps, module.momentum, module.affine, module.track_running_stats, process_group)
            made = cls(module.num_features, *settings)
            made._parameters.update(module._parameters)
            made._buffers.update(module._buffers)
            made.train(module.training)
        for name, child in module.named_children():
            made.add_module(name, cls.convert_sync_batchnorm(child, process_group))
        return made


def _joined(x: Tensor, group: Any) -> tuple[Tensor, Tensor, float]:
    """Mean and biased variance of each channel over all processes, and how many values it has."""
    axes = (0, *range(2, x.ndim))
    count = x.numel() // max(1, x.shape[1])
    if count:
        own, mean = torch.var_mean(x, axes, correction=0)
        row = torch.cat([mean.double(), own.double() * count, x.new_tensor([count], dtype=torch.float64)])
    else:
        row = x.new_zeros(2 * x.shape[1] + 1, dtype=torch.float64)
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
    dist.all_gather(rows, row, group=group)
    table = torch.stack(rows)
    counts, means, m2 = table[:, -1:], table[:, : x.shape[1]], table[:, x.shape[1] : -1]
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    variance = (m2 + counts * (means - mean).square()).sum(0) / total
    return mean, variance, float(total)


class _Synchronised(torch.autograd.Function):
    """x̂ by given statistics, which are known to depend on every process's x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, eps: float, count: float, group: Any) -> Tensor:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        rate = (variance + eps).rsqrt()
        shift = mean.to(x.dtype)
        left = ((shift.double() - mean) * rate).to(x.dtype)
        hat = torch.addcmul(left.view(shape), x - shift.view(shape), rate.to(x.dtype).view(shape))
        ctx.save_for_backward(hat, rate)
        ctx.count, ctx.group = count, group
        return hat

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        hat, rate = ctx.saved_tensors
        axes, shape = (0, *range(2, dy.ndim)), (1, -1) + (1,) * (dy.ndim - 2)
        sums = torch.stack([dy.sum(axes, dtype=torch.float64), (dy * hat).sum(axes, dtype=torch.float64)])
        dist.all_reduce(sums, group=ctx.group)
        plain, along = (sums / ctx.count).to(dy.dtype)
        dx = (dy - plain.view(shape) - hat * along.view(shape)) * rate.to(dy.dtype).view(shape)
        return dx, None, None, None, None, None
