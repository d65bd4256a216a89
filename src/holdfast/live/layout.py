"""Which axis of an activation holds samples and which features, and a bounded view of it.

Every statistic reads a *block* `(samples, channels, positions)`. This file turns a tensor as a layer sees it into
such a block without copying it, and, in sampled mode, into a strided view of at most `max_elements` elements:
as many samples as possible first (the unit of inference is the sample), then channels, then positions.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)

from holdfast.kernels.lens import Window

# Layers whose features lie on axis 1 whatever follows it, and layers whose features are the last axis.
_CHANNELS_SECOND = (
    _ConvNd,
    _NormBase,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.PReLU,
    nn.Upsample,
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _LPPoolNd,
    _MaxPoolNd,
)
_CHANNELS_LAST = (nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where samples and features lie in a tensor.

    Args:
        samples: axis of the samples.
        channels: axis of the features, `None` when each sample is a single number.
    """

    samples: int
    channels: int | None


def layout_of(
    module: nn.Module,
    tensor: Tensor,
    inherited: Layout | None = None,
    *,
    leaf: str = "",
    time_first: bool = False,
) -> Layout | None:
    """The layout of a tensor that a module takes or gives.

    Convolutions, batch-statistics normalisers and poolings keep features on axis 1; linear layers, layer
    normalisers, embeddings, recurrent and attention layers on the last axis. A layer that works element by element
    says nothing: it takes the layout of the layer whose output it received (`inherited`), else axis 1 from four
    axes on and the last axis below.

    Samples are on axis 0, except in sequences that a model keeps time first, as recurrent and attention layers do
    unless told `batch_first=True`: what feeds such a layer, and what it feeds, has its samples on axis 1. So where a
    model is `time_first`, 3-D tensors of layers with features on the last axis have them there.

    Args:
        module: the layer.
        tensor: its input, output, or the gradient at one of these.
        inherited: layout of the layer that made the tensor, when it is known.
        leaf: path of the tensor in a nested value: a recurrent layer's states have other axes than its sequence.
        time_first: whether the model's sequences have time on axis 0 and samples on axis 1.

    Returns:
        The layout, or `None` for a tensor without axes, and for recurrent states without a batch.

    Example:
        >>> import torch
        >>> layout_of(nn.Conv2d(3, 8, 3), torch.zeros(5, 3, 9, 9))
        Layout(samples=0, channels=1)
        >>> layout_of(nn.LSTM(4, 4), torch.zeros(7, 5, 4))  # time first
        Layout(samples=1, channels=2)
    """
    if tensor.ndim == 0:
        return None
    if tensor.ndim == 1:
        return Layout(0, None)
    if isinstance(module, nn.RNNBase) and leaf not in {"", "0"}:
        return Layout(1, 2) if tensor.ndim == 3 else None  # (layers, samples, features)
    if tensor.ndim == 2:
        return Layout(0, 1)
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        time_first = not module.batch_first
    samples = 1 if time_first and tensor.ndim == 3 else 0
    if isinstance(module, _CHANNELS_LAST):
        return Layout(samples, tensor.ndim - 1)
    if isinstance(module, _CHANNELS_SECOND):
        return Layout(0, 1)
    if inherited is not None and inherited.channels is not None and inherited.channels < tensor.ndim:
        return inherited
    return Layout(0, 1) if tensor.ndim >= 4 else Layout(samples, tensor.ndim - 1)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which part of a site's tensors is read.

    Channels are chosen once per site, so that figures per channel stay comparable from step to step; positions
    move with `phase`, so that over the steps every position is read equally often.

    Args:
        max_elements: the most elements of one tensor, `None` for all.
        channel_step: every how many channels one is read.
    """

    max_elements: int | None
    channel_step: int

    @classmethod
    def of(cls, tensor: Tensor, layout: Layout, max_elements: int | None) -> Sampling:
        """The sampling of a site, from the first tensor seen there."""
        if max_elements is None or tensor.numel() <= max_elements or layout.channels is None:
            return cls(max_elements, 1)
        samples, channels = tensor.shape[layout.samples], tensor.shape[layout.channels]
        return cls(max_elements, math.ceil(channels / max(1, max_elements // samples)))


def window_of(tensor: Tensor, layout: Layout, sampling: Sampling) -> Window | None:
    """Which elements of a tensor are read, by strides: the same for all tensors of its shape and strides.

    Args:
        tensor: as the layer sees it.
        layout: where its samples and features lie.
        sampling: which part to read.

    Returns:
        At most `sampling.max_elements` elements (or one sample with one position of each channel, where that is more);
        `None` where the axes of positions do not merge into one stride.

    Example:
        >>> import torch
        >>> window_of(torch.zeros(8, 16, 10, 10), Layout(0, 1), Sampling(1280, 1))
        Window(samples=8, channels=16, positions=100, sample_stride=1600, channel_stride=100, position_stride=1, \
sample_step=1, position_step=11)
    """
    shape, strides = tensor.shape, tensor.stride()
    if layout.channels is None:
        samples, channels, positions, position_stride = math.prod(shape), 1, 1, 1
        if len(shape) != 1:
            return None
        sample_stride = channel_stride = strides[0]
    else:
        rest = [axis for axis in range(tensor.ndim) if axis not in (layout.samples, layout.channels)]
        rest = [axis for axis in rest if shape[axis] != 1]
        if any(strides[a] != strides[b] * shape[b] for a, b in itertools.pairwise(rest)):
            return None
        position_stride = strides[rest[-1]] if rest else 1
        positions = math.prod(shape[axis] for axis in rest)
        samples, sample_stride = shape[layout.samples], strides[layout.samples]
        channels = math.ceil(shape[layout.channels] / sampling.channel_step)
        channel_stride = strides[layout.channels] * sampling.channel_step
    window = Window(samples, channels, positions, sample_stride, channel_stride, position_stride)
    limit = sampling.max_elements
    if limit is None or samples * channels * positions <= limit:
        return window
    fit = max(1, limit // channels)
    every = math.ceil(samples / fit) if samples > fit else 1
    kept = max(1, limit // (math.ceil(samples / every) * channels))
    # An odd step shares no factor with the usual widths, powers of two, so that no column is read every time.
    leap = 1 if kept >= positions else math.ceil(positions / kept) | 1
    return window._replace(sample_step=every, position_step=leap)


def block(
    tensor: Tensor, layout: Layout, sampling: Sampling, phase: float
) -> Shaped[Tensor, "samples channels positions"]:
    """A tensor as a block, a view wherever strides allow.

    Args:
        tensor: as the layer sees it.
        layout: where its samples and features lie.
        sampling: which part to read.
        phase: in [0, 1): where among the positions (and among the samples, where there are more than fit) the
            strided reading starts.

    Returns:
        `(samples, channels, positions)`, of at most `sampling.max_elements` elements (or one sample with one
        position of each channel, where that is more).

    Example:
        >>> import torch
        >>> images = torch.zeros(8, 16, 10, 10)
        >>> tuple(block(images, Layout(0, 1), Sampling(1280, 1), 0.5).shape)
        (8, 16, 9)
    """
    if layout.channels is None:
        view = tensor.reshape(-1, 1, 1)
    else:
        rest = [axis for axis in range(tensor.ndim) if axis not in (layout.samples, layout.channels)]
        view = tensor.permute(layout.samples, layout.channels, *rest)
        view = view.unsqueeze(-1) if not rest else view
    view = view[:, :: sampling.channel_step] if sampling.channel_step > 1 else view
    window = window_of(tensor, layout, sampling)
    if window is not None:
        sample, position = window.start(phase)
        return view.flatten(2)[sample :: window.sample_step, :, position :: window.position_step]
    limit = sampling.max_elements
    if limit is None or view.numel() <= limit:
        return view.flatten(2)
    samples = max(1, limit // view.shape[1])
    if view.shape[0] > samples:
        step = math.ceil(view.shape[0] / samples)
        view = view[int(phase * step) :: step]
    # Positions that do not merge into one stride: read the whole of evenly spaced slices of their first axis.
    positions = math.prod(view.shape[2:])
    kept = max(1, limit // max(1, view.shape[0] * view.shape[1]))
    slices = min(view.shape[2], max(1, kept * view.shape[2] // positions))
    step = math.ceil(view.shape[2] / slices)
    return view[:, :, int(phase * step) :: step].flatten(2)
