"""What a batch normaliser is about to do with a batch: read before its forward, while the running averages stand."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from holdfast.core.protocols import Telemetry
from holdfast.live.layout import Layout, Sampling, block
from holdfast.stats.batch_statistics import BatchStatistics, Running

CHANNELS = 16
SAMPLES = 16
"""The least that is read of a larger tensor before positions are left out. How much positions are worth is what the
noise of a batch statistic hangs on, and all samples share the same ones, so that to leave some out is a common error;
of 16,384 elements 64 positions remain at least."""


def normalises_batches(module: nn.Module) -> bool:
    """Whether a layer normalises with the statistics of the batch.

    Args:
        module: a leaf.

    Example:
        >>> normalises_batches(nn.BatchNorm2d(3)), normalises_batches(nn.InstanceNorm2d(3))
        (True, False)
    """
    return isinstance(module, _BatchNorm)


def told(module: nn.Module, tensor: Tensor, running: Running | None) -> BatchStatistics | None:
    """The statistics of a batch as the layer that has just normalised it tells them: the tensor is not read.

    Args:
        module: the normaliser, after its forward in training.
        tensor: its input.
        running: the running averages before it, of all channels.

    Returns:
        The statistics over the whole batch; `None` where the layer does not tell those of each sample.
    """
    if not isinstance(module, Telemetry) or not isinstance(module, _BatchNorm) or not module.training:
        return None
    figures = module.telemetry()
    if "sample_mean" not in figures or len(figures["sample_mean"]) != len(tensor):
        return None
    means, variances = (figures[name].numpy() for name in ("sample_mean", "sample_variance"))
    positions = math.prod(tensor.shape[2:])
    return BatchStatistics.from_samples(
        means, variances, positions, samples=_samples(module, len(tensor)), running=running
    )


def running_before(module: nn.Module) -> Running | None:
    """The running averages of all channels, copied: the forward moves them.

    Args:
        module: the normaliser.

    Returns:
        `None` where it keeps none.
    """
    return _running(module, 1) if isinstance(module, _BatchNorm) else None


def batch_statistics(
    module: nn.Module, tensor: Tensor, *, max_elements: int | None, where: float, running: Running | None = None
) -> BatchStatistics | None:
    """The statistics of a batch that a normaliser is given, beside the running averages before it.

    Args:
        module: the normaliser, `(batch, channels, *spatial)`.
        tensor: its input.
        max_elements: the most elements that are read, `None` for all.
        where: in [0, 1), where the strided reading of positions starts.
        running: the running averages before it, of all channels; the module's own when `None`.

    Returns:
        Copies; `None` where there is nothing to compute an error from.
    """
    if not isinstance(module, _BatchNorm) or tensor.ndim < 2 or not tensor.is_floating_point():
        return None
    every, step = _strides(tensor, max_elements)
    part = tensor[int(where * every) :: every]
    if running is None:
        running = _running(module, step)
    elif step > 1:
        running = replace(running, mean=running.mean[::step], variance=running.variance[::step])
    return BatchStatistics.of(
        block(part, Layout(0, 1), Sampling(max_elements, step), where),
        samples=_samples(module, tensor.shape[0]),
        running=running,
        own=module.training or module.running_mean is None,
    )


def _strides(tensor: Tensor, max_elements: int | None) -> tuple[int, int]:
    """Every how many samples and channels one is read: as many samples as leave all positions of the channels in."""
    samples, channels, *rest = tensor.shape
    if max_elements is None or tensor.numel() <= max_elements:
        return 1, 1
    step = math.ceil(channels / CHANNELS)
    kept = max_elements // (math.ceil(channels / step) * math.prod(rest))
    return math.ceil(samples / max(kept, SAMPLES)), step


def _running(module: _BatchNorm, step: int) -> Running | None:
    if module.running_mean is None or module.running_var is None:
        return None
    if module.momentum is not None:
        noise = module.momentum / (2 - module.momentum)
    else:
        tracked = 0 if module.num_batches_tracked is None else int(module.num_batches_tracked)
        noise = 1 / max(tracked, 1)
    # In float64, or copied: the forward moves the buffers in place.
    mean, variance = (
        each[::step].detach().to("cpu", torch.float64, copy=True).numpy()
        for each in (module.running_mean, module.running_var)
    )
    return Running(mean, variance, float(module.eps), float(noise))


def _samples(module: _BatchNorm, batch: int) -> int:
    """How many samples share a statistic."""
    chunk_size = getattr(module, "chunk_size", None)
    if isinstance(chunk_size, int):
        return batch // max(1, batch // chunk_size)
    if isinstance(module, nn.SyncBatchNorm) and torch.distributed.is_initialized():
        return batch * torch.distributed.get_world_size(module.process_group)
    return batch
