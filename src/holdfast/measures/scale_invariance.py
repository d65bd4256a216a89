"""Which weights are scale-invariant: a normaliser takes their length out again."""

from __future__ import annotations

import re

from holdfast.core.structure import ModuleNode, Structure

# Layers that are linear in their weight, so that twice the weight is twice the output (without a bias).
_LINEAR = frozenset(
    {"Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Bilinear"}
)

# Layers that hand a factor on: f(c x) = c f(x) for every c > 0.
_HOMOGENEOUS = frozenset(
    {"ReLU", "LeakyReLU", "PReLU", "RReLU", "_MaxPoolNd", "_AvgPoolNd", "_AdaptiveAvgPoolNd", "_AdaptiveMaxPoolNd"}
)

_NORMALISER = re.compile(r"Norm(\dd)?$")
# Named like one, and x / f(x) with an f that does not scale with x, or with figures of other batches.
_NOT_ONE = frozenset({"LocalResponseNorm", "SwitchableNorm", "QKNorm", "Norm"})
_SUBTRACTS_BIAS = frozenset({"_BatchNorm", "_InstanceNorm"})


def scale_invariant(structure: Structure) -> tuple[str, ...]:
    """Names of the weights whose length does not matter to the function.

    Such is the weight of a linear or convolutional layer whose output goes into a normaliser alone, directly or through
    layers that hand a factor on (ReLU, pooling), and whose bias, if any, the normaliser subtracts. Normalisers are told
    by their class or its name. A BatchNorm is taken to use its batch's statistics: in eval mode, or frozen, the weight
    before it is not scale-invariant. ε of the normaliser leaves a remainder of order ε/σ².

    Args:
        structure: of a model, its forward pass followed.

    Returns:
        Full parameter names, in the order of execution; none where no forward pass was followed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from holdfast.live.replay import record_call
        >>> from holdfast.live.structure import extract
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> scale_invariant(extract(net, call=record_call((torch.ones(3, 4),), {})))
        ('0.weight',)
    """
    shared = {name for names in structure.aliases for name in names}
    found = []
    for path in structure.order:
        node = structure.module(path)
        if node is None or node.calls != 1 or not _LINEAR.intersection((node.kind, *node.bases)):
            continue
        own = {each.name.rpartition(".")[2]: each for each in node.parameters}
        if "weight" not in own or own["weight"].name in shared:
            continue
        normaliser, direct = _normaliser_behind(node, structure)
        if normaliser is None:
            continue
        if "bias" not in own or (direct and _SUBTRACTS_BIAS.intersection(normaliser.bases)):
            found.append(own["weight"].name)
    return tuple(found)


def _normaliser_behind(node: ModuleNode, structure: Structure) -> tuple[ModuleNode | None, bool]:
    """The normaliser that alone takes a layer's output, and whether nothing is between."""
    direct = True
    while True:
        targets = [target for source, target in structure.edges if source == node.path]
        if len(targets) != 1 or structure.sources(targets[0]) != (node.path,):
            return None, direct
        if any(call.producer == node.path for call in structure.functional):
            return None, direct
        behind = structure.module(targets[0])
        if behind is None or behind.calls != 1:
            return None, direct
        if _normalises(behind):
            return behind, direct
        if not _HOMOGENEOUS.intersection((behind.kind, *behind.bases)):
            return None, direct
        node, direct = behind, False


def _normalises(node: ModuleNode) -> bool:
    names = (node.kind, *node.bases)
    return not _NOT_ONE.intersection(names) and any(_NORMALISER.search(name) for name in names)
