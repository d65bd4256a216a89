"""Which layers a treatment acts on, what stands before and behind them, and how a script names them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from holdfast.core.errors import InputError
from holdfast.core.site import Site
from holdfast.norms.normaliser import Normaliser
from holdfast.treatments.change import Batch, call_of, rerun

WEIGHTED: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that multiply by a matrix; treatments act on exactly these types: a subclass may use its weight otherwise."""

NORMS: tuple[type[nn.Module], ...] = (
    _NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    Normaliser,  # type: ignore[assignment]  # mixed into modules only
)
"""torch's normalisers and all of ours."""

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Softsign,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.LogSigmoid,
)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One layer without children, as it was met.

    Args:
        path: as `named_modules` gives it.
        module: the layer.
        shape: of its first input on the batch; `None` when none was given or it did not run.
        calls: how often it ran on the batch; 1 when none was given.
    """

    path: str
    module: nn.Module
    shape: tuple[int, ...] | None = None
    calls: int = 1


def leaves(model: nn.Module, batch: Batch | None = None) -> list[Leaf]:
    """The layers without children, in the order of execution on the batch, else in the order of registration.

    Args:
        model: the model.
        batch: what it is called with; the call leaves no trace.

    Returns:
        Each distinct layer once. On a batch: only those that ran.

    Example:
        >>> [leaf.path for leaf in leaves(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
        ['0', '1']
    """
    # A parametrised layer counts as one, with the modules that compute its weight inside.
    found = [
        Leaf(path, module)
        for path, module in model.named_modules()
        if "parametrizations" not in path.split(".") and not set(module._modules) - {"parametrizations"}
    ]
    if batch is None:
        return found
    shapes: dict[int, list[tuple[int, ...] | None]] = {}

    def seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        shapes.setdefault(id(module), []).append(tuple(tensors[0].shape) if tensors else None)

    handles = [leaf.module.register_forward_pre_hook(seen, with_kwargs=True) for leaf in found]
    try:
        rerun(model, call_of(batch))
    finally:
        for handle in handles:
            handle.remove()
    by_identity = {id(leaf.module): leaf for leaf in found}
    return [Leaf(by_identity[key].path, by_identity[key].module, calls[0], len(calls)) for key, calls in shapes.items()]


def named(model: nn.Module, sites: Sequence[Site]) -> list[tuple[str, nn.Module]]:
    """The modules that sites name, each once, in the order of the sites.

    Args:
        model: the model.
        sites: at any port and phase.

    Returns:
        Path and module.

    Raises:
        InputError: the model has no such module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[int, tuple[str, nn.Module]] = {}
    for site in sites:
        if site.module not in modules:
            raise InputError(
                "sites of this model",
                f"{site.module!r}, which it does not have",
                "list its modules with: [name for name, _ in model.named_modules()]",
            )
        module = modules[site.module]
        found.setdefault(id(module), (site.module, module))
    return list(found.values())


def weighted_before(order: Sequence[Leaf], module: nn.Module) -> Leaf | None:
    """The nearest layer with a matrix in front of a layer, in the order given; `None` when there is none."""
    return next((leaf for leaf in _before(order, module) if isinstance(leaf.module, WEIGHTED)), None)


def norm_before(order: Sequence[Leaf], module: nn.Module, planned: Container[int] = ()) -> Leaf | None:
    """The normaliser between a layer and the nearest layer with a matrix in front of it.

    Args:
        order: from `leaves`.
        module: the layer.
        planned: identities of layers that are about to get one in front.

    Returns:
        The normaliser, or the layer that is about to get one; `None` when there is neither.
    """
    for leaf in _before(order, module):
        if isinstance(leaf.module, NORMS) or (id(leaf.module) in planned and not isinstance(leaf.module, WEIGHTED)):
            return leaf
        if isinstance(leaf.module, WEIGHTED):
            return None
    return None


def activation_behind(order: Sequence[Leaf], module: nn.Module) -> nn.Module | None:
    """The activation between a layer and the next layer with a matrix, or `None`."""
    place = _place(order, module)
    for leaf in order[place + 1 :] if place is not None else ():
        if isinstance(leaf.module, ACTIVATIONS):
            return leaf.module
        if isinstance(leaf.module, WEIGHTED):
            return None
    return None


def _before(order: Sequence[Leaf], module: nn.Module) -> Iterator[Leaf]:
    place = _place(order, module)
    return iter(() if place is None else order[:place][::-1])


def _place(order: Sequence[Leaf], module: nn.Module) -> int | None:
    return next((place for place, leaf in enumerate(order) if leaf.module is module), None)


def expression(model: nn.Module, path: str) -> str:
    """How a script names a module.

    Args:
        model: the model, called `model` in the script.
        path: of the module.

    Returns:
        A Python expression, to which one may also assign.

    Example:
        >>> model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(1, 1), nn.Tanh())})
        >>> expression(model, "body.1")
        "model['body'][1]"
    """
    text, module = "model", model
    for name in path.split(".") if path else ():
        if isinstance(module, nn.ModuleDict):
            text += f"[{name!r}]"
        elif isinstance(module, nn.Sequential | nn.ModuleList) and not name.isidentifier():
            text += f"[{list(module._modules).index(name)}]"
        elif name.isidentifier():
            text += f".{name}"
        else:
            text += f"._modules[{name!r}]"
        child = module._modules[name]
        assert child is not None
        module = child
    return text


def paths_of(model: nn.Module, module: nn.Module) -> list[str]:
    """Every path under which a model holds a module."""
    return [path for path, each in model.named_modules(remove_duplicate=False) if each is module]
