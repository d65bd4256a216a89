"""What flows into a layer, and whether batch statistics of it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from holdfast.norms.layer_norm import LayerNorm2d
from holdfast.norms.scale_norm import ScaleNorm
from holdfast.treatments.places import Leaf, weighted_before

FEWEST = 8
"""Samples below which batch statistics are too noisy: the variance of n normal values has the relative standard
deviation √(2/(n−1)), which is 53 % at 8."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What flows into a layer.

    Args:
        width: how many features.
        spatial: axes of positions beside them.
        features_last: whether the features are on the last axis; else they are on axis 1.
        samples: on axis 0 of the batch; `None` without one.
        calls: how often the layer ran on the batch; 1 without one.
    """

    width: int
    spatial: int
    features_last: bool
    samples: int | None
    calls: int


def batch_fails(model: nn.Module, stream: Stream) -> bool:
    """Whether batch statistics are known to fail for what flows into a layer.

    Args:
        model: the model; one that normalises each sample already goes on so.
        stream: from `stream_into`.

    Returns:
        True for sequences, layers that run several times, fewer than 8 samples, and such models.
    """
    per_sample = (
        nn.Embedding,
        nn.RNNBase,
        nn.MultiheadAttention,
        nn.LayerNorm,
        nn.RMSNorm,
        nn.GroupNorm,
        LayerNorm2d,
        ScaleNorm,
    )
    return (
        (stream.features_last and stream.spatial > 0)
        or stream.calls > 1
        or (stream.samples is not None and stream.samples < FEWEST)
        or any(isinstance(module, per_sample) for module in model.modules())
    )


def stream_into(order: Sequence[Leaf], module: nn.Module) -> Stream | None:
    """What flows into a layer, from its settings, from the layer that feeds it, and from its shape on the batch.

    Args:
        order: from `places.leaves`.
        module: the layer.

    Returns:
        What is known; `None` when the number of features is not.
    """
    leaf = next((leaf for leaf in order if leaf.module is module), None)
    shape = None if leaf is None else leaf.shape
    samples = None if shape is None else shape[0]
    calls = 1 if leaf is None else leaf.calls
    spatial = _convolved(module)
    if spatial is not None:
        return Stream(module.in_channels, spatial, False, samples, calls)  # type: ignore[arg-type]
    if type(module) is nn.Linear:
        return Stream(module.in_features, 0 if shape is None else len(shape) - 2, True, samples, calls)
    feeding = weighted_before(order, module)
    if feeding is None:
        return None
    spatial = _convolved(feeding.module)
    if spatial is not None and (shape is None or len(shape) == spatial + 2):
        return Stream(feeding.module.out_channels, spatial, False, samples, calls)  # type: ignore[arg-type]
    if isinstance(feeding.module, nn.Linear):
        width = feeding.module.out_features
        if shape is None or shape[-1] == width:
            return Stream(width, 0 if shape is None else len(shape) - 2, True, samples, calls)
    return None


def _convolved(module: nn.Module) -> int | None:
    """Axes of positions of a convolution, `None` for other layers."""
    return next((n for n, kind in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)) if isinstance(module, kind)), None)
