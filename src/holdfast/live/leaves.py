"""Which modules of a model are observed, and what is known about an activation from its type."""

from __future__ import annotations

import math

from torch import Tensor, nn

from holdfast.live.inner import inner_model

# A network's activations pass these unchanged but for their shape (or, for dropout, but for the zeros that it plants).
PASS_THROUGH: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.Fold,
    nn.Unfold,
    nn.modules.dropout._DropoutNd,
)

# Modules with children whose computation does not go through the children's `forward`.
OPAQUE: tuple[type[nn.Module], ...] = (nn.MultiheadAttention,)

# Share of the greatest slope below which a unit counts as saturated.
SATURATED_SLOPE = 0.05
# tanh′(z) = 1 − tanh²(z) has its maximum 1 at 0 and falls to 0.05 where tanh(z) = √0.95, at z = 2.178.
SATURATED_TANH = math.atanh(math.sqrt(1 - SATURATED_SLOPE))
# sigmoid(z) = (1 + tanh(z/2)) / 2, so its slope relative to its maximum is tanh's at z/2: z = 4.357.
SATURATED_SIGMOID = 2 * SATURATED_TANH

# Rectifying functions → the value at and below which they give exactly zero: hard swish and hard sigmoid are
# x · relu6(x + 3) / 6 and relu6(x + 3) / 6.
_ZERO_UP_TO = {"relu": 0.0, "relu_": 0.0, "relu6": 0.0, "hardswish": -3.0, "hardsigmoid": -3.0}


def observed_leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules whose inputs are worth observing: leaves, except those that only change shape, and dropout.

    A module whose only children are parametrisations (spectral or weight norm) is a leaf; so is
    `nn.MultiheadAttention`, which uses its children's weights without calling them. A module that stands at several
    places is given once, at its first path.

    Args:
        model: any; a compiled or a distributed one is looked into.

    Returns:
        `(path, module)` in the order of `named_modules`.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Dropout(), nn.ReLU())
        >>> [path for path, _ in observed_leaves(net)]
        ['1', '3']
    """
    return [(path, module) for path, module in leaf_modules(model) if not passes_through(module)]


def leaf_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All leaves, those that only change shape included.

    Args:
        model: any; a compiled or a distributed one is looked into.

    Returns:
        `(path, module)` in the order of `named_modules`, each module once.
    """
    found: list[tuple[str, nn.Module]] = []
    inner = inner_model(model)
    hidden: set[nn.Module] = set()
    for path, module in inner.named_modules():
        if module in hidden:
            continue
        if is_leaf(module):
            hidden.update(module.modules())  # a leaf's parametrisations are part of it
            # An empty container computes nothing.
            if not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict):
                found.append((path, module))
    return found


def is_leaf(module: nn.Module) -> bool:
    """Whether a module computes by itself: it has no children, or none that compute in its stead.

    Example:
        >>> is_leaf(nn.Linear(1, 1)), is_leaf(nn.Sequential(nn.Linear(1, 1)))
        (True, False)
    """
    return isinstance(module, OPAQUE) or all(name == "parametrizations" for name, _ in module.named_children())


def passes_through(module: nn.Module) -> bool:
    """Whether a leaf hands on what it is given: it changes only the shape, or plants the zeros of dropout.

    Example:
        >>> passes_through(nn.Dropout2d()), passes_through(nn.Sequential()), passes_through(nn.ReLU())
        (True, True, False)
    """
    # An empty Sequential is the customary identity of a shortcut.
    return isinstance(module, PASS_THROUGH) or (isinstance(module, nn.Sequential) and len(module) == 0)


def saturation_threshold(activation: nn.Module | str) -> float | None:
    """The |z| beyond which an activation's slope is below 5 % of its greatest.

    Args:
        activation: a module, or the name of a function as `Structure.functional` gives it (`"sigmoid"`, `"tanh_"`).

    Returns:
        The threshold in the unit of the activation's input, `None` for an activation without two flat ends. That of a
        dynamic tanh (see `slope_of`) is the present one.

    Example:
        >>> round(saturation_threshold(nn.Sigmoid()), 3), round(saturation_threshold("tanh"), 3)
        (4.357, 2.178)
        >>> saturation_threshold(nn.GELU()) is None
        True
    """
    if isinstance(activation, nn.Sigmoid) or activation in ("sigmoid", "sigmoid_"):
        return SATURATED_SIGMOID
    if isinstance(activation, nn.Tanh) or activation in ("tanh", "tanh_"):
        return SATURATED_TANH
    slope = None if isinstance(activation, str) else slope_of(activation)
    if slope is None:
        return None
    alpha = abs(slope.item())
    return SATURATED_TANH / alpha if alpha else math.inf


def slope_of(activation: nn.Module) -> Tensor | None:
    """The learnt α of a layer that gives tanh(α x): ours and the paper's own `DynamicTanh`, known by name.

    Args:
        activation: any module.

    Returns:
        α, a single number; `None` for any other layer.

    Example:
        >>> slope_of(nn.Tanh()) is None
        True
    """
    alpha = activation._parameters.get("alpha")
    known = any(kind.__name__ == "DynamicTanh" for kind in type(activation).__mro__)
    return alpha.detach() if known and alpha is not None and alpha.numel() == 1 else None


def is_rectifier(activation: nn.Module | str) -> bool:
    """Whether an activation gives exactly zero over a half-line, so that a unit can die there.

    Args:
        activation: a module, or the name of a function as `Structure.functional` gives it.

    Returns:
        True for ReLU and its like; False for those that leak or only approach zero.

    Example:
        >>> is_rectifier(nn.ReLU6()), is_rectifier(nn.LeakyReLU(0.01)), is_rectifier("relu")
        (True, False, True)
    """
    if isinstance(activation, str):
        return zero_up_to(activation) is not None
    if isinstance(activation, nn.Hardtanh):  # ReLU6 is one, from 0 to 6
        return activation.min_val == 0
    if isinstance(activation, nn.LeakyReLU):
        return activation.negative_slope == 0
    if isinstance(activation, nn.Threshold):
        return activation.value == 0
    return isinstance(activation, nn.ReLU | nn.Hardswish | nn.Hardsigmoid)


def zero_up_to(function: str) -> float | None:
    """The value at and below which a rectifying function gives exactly zero.

    Args:
        function: its name as `Structure.functional` gives it.

    Returns:
        The value, in the unit of the function's input; `None` for a function that does not rectify.

    Example:
        >>> zero_up_to("relu"), zero_up_to("hardswish"), zero_up_to("gelu")
        (0.0, -3.0, None)
    """
    return _ZERO_UP_TO.get(function)
