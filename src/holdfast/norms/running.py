"""Running statistics: how they move, once a step under gradient accumulation, once under checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError
from holdfast.norms.normaliser import is_wrapped, recomputing


class Pool:
    """Statistics of the micro-batches of one optimiser step: their count, mean and squared distances from it.

    Args:
        between: whether the distances are those from the common mean, and not from each batch's own.
    """

    def __init__(self, between: bool = True) -> None:
        self.between = between
        self.count = 0.0
        self.mean: Tensor | None = None
        self.m2: Tensor | None = None

    def add(self, mean: Tensor, m2: Tensor, count: float) -> None:
        """Merge a micro-batch of `count` values a channel."""
        mean, m2 = mean.double(), m2.double()
        if self.mean is None or self.m2 is None:
            self.count, self.mean, self.m2 = count, mean.clone(), m2.clone()
            return
        total = self.count + count
        delta = mean - self.mean
        self.m2 = self.m2 + m2 + delta.square() * (self.count * count / total if self.between else 0.0)
        self.mean = self.mean + delta * (count / total)
        self.count = total


class Tracked:
    """Mixed into a module with running statistics, which move as torch's do."""

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    momentum: float | None
    _buffers: dict[str, Tensor | None]
    _pool: Pool | None = None
    _pools_between = True

    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Take a batch's mean and biased variance, of `count` values a channel, into the running ones."""
        if self.running_mean is None or self.running_var is None or recomputing():
            return
        mean, variance = mean.detach(), variance.detach()
        if self._pool is not None:
            self._pool.add(mean, variance * count, count)
        else:
            self._move(mean, variance * (count / max(count - 1, 1)))

    def _move(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        momentum = self._next_momentum()
        targets = (self._buffers["running_mean"], self._buffers["running_var"])
        if isinstance(momentum, float) and all(_plain(each) for each in (mean, unbiased, *targets)):
            # NumPy: a tenth of the time of as many operations on tensors
            for buffer, batch in zip(targets, (mean, unbiased), strict=True):
                assert buffer is not None
                values = buffer.numpy()
                with np.errstate(over="ignore", invalid="ignore"):  # a variance beyond float32 is inf, as torch's
                    values += momentum * (batch.numpy() - values)
            return
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), momentum)

    def _next_momentum(self) -> float | Tensor:
        """Count a batch; new = (1 − m) · old + m · batch."""
        counter = self._buffers["num_batches_tracked"]
        if counter is not None:
            counter.add_(1)
        if self.momentum is not None:
            return self.momentum
        if counter is None:
            return 0.0
        return counter.to(torch.float32).reciprocal() if torch.compiler.is_compiling() else 1.0 / float(counter)

    def _commit(self) -> None:
        """Move by what was pooled, if anything was."""
        pool = self._pool
        if pool is None or pool.mean is None or pool.m2 is None:
            return
        self._move(pool.mean, pool.m2 / max(pool.count - 1 if pool.between else pool.count, 1))
        self._pool = Pool(pool.between)


def _plain(tensor: Tensor | None) -> bool:
    """Whether NumPy may work in a tensor's memory, outside every graph."""
    return (
        tensor is not None
        and not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
        and not tensor.requires_grad
        and not is_wrapped(tensor)
        and not tensor.is_inference()
    )


def check_momentum(momentum: float | None, eps: float) -> None:
    """Refuse settings that no running statistic or root can bear.

    Args:
        momentum: m, `None` for the cumulative average.
        eps: ε.

    Raises:
        InputError: m outside [0, 1], or ε below 0 or not finite.
    """
    if momentum is not None and not 0.0 <= momentum <= 1.0:
        raise InputError("momentum in [0, 1], or None", f"momentum={momentum}", "torch's default is 0.1")
    check_eps(eps)


def check_eps(eps: float | None) -> None:
    """Refuse an ε that no root can bear.

    Args:
        eps: ε, or `None` for a default.

    Raises:
        InputError: ε is below 0 or not finite.
    """
    if eps is not None and not 0.0 <= eps < float("inf"):
        raise InputError("eps of 0 or more", f"eps={eps}", "torch's default is 1e-5")


class Accumulation:
    """Pools running statistics over the micro-batches of an optimiser step, until `close()` or the end of a `with`."""

    def __init__(self, layers: Sequence[Tracked], optimizer: Optimizer) -> None:
        self._layers = list(layers)
        for layer in layers:
            layer._pool = Pool(layer._pools_between)
        self._handle = optimizer.register_step_post_hook(self._stepped)

    def _stepped(self, *_: Any) -> None:
        for layer in self._layers:
            layer._commit()

    def close(self) -> None:
        """Move by what is still pooled, and move batch by batch from now on. A second call does nothing."""
        self._handle.remove()
        for layer in self._layers:
            layer._commit()
            layer._pool = None
        self._layers = []

    def __enter__(self) -> Accumulation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def accumulate(model: nn.Module, optimizer: Optimizer) -> Accumulation:
    r"""Under gradient accumulation, let running statistics move once an optimiser step, by all its micro-batches.

    torch's layers, and ours without this, move at every micro-batch: with k of them a step, the memory of the running
    statistics is k times shorter than `momentum` says, and the variance between micro-batches is left out. Pooled,
    they are those of the union: mean Σ nᵢ μᵢ / n, variance (Σ mᵢ + Σ nᵢ (μᵢ − μ)²) / (n − 1), mᵢ the squared
    distances from the micro-batch's mean. Each micro-batch is normalised by its own statistics as before.

    Args:
        model: in which every normaliser of ours with running statistics is taken.
        optimizer: whose steps end an accumulation.

    Returns:
        A context manager with `close()`.

    Raises:
        InputError: the model has no normaliser of ours with running statistics, or they are pooled already.

    Example:
        >>> import holdfast.norms as norms
        >>> net = norms.BatchNorm1d(1, momentum=1.0)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with accumulate(net, sgd):
        ...     for batch in (torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])):
        ...         net(batch).sum().backward()
        ...     sgd.step()
        >>> net.running_mean, net.num_batches_tracked
        (tensor([3.]), tensor(1))
    """
    layers = [each for each in model.modules() if isinstance(each, Tracked) and each.running_mean is not None]
    if not layers:
        raise InputError(
            "a model with a normaliser of holdfast.norms that has running statistics",
            f"a {type(model).__name__} without",
            "type: from holdfast.norms import BatchNorm2d",
        )
    if any(layer._pool is not None for layer in layers):
        raise InputError(
            "running statistics that move batch by batch",
            "some that are pooled already",
            "close the first: pooled.close()",
        )
    return Accumulation(layers, optimizer)
