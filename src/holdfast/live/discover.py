"""Finding the models whose parameters an optimiser steps, in a process that nobody prepared for it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.optim import Optimizer

from holdfast.live.inner import inner_model


class Registry:
    """Modules as they are built: the second way to find one, where the garbage collector does not list it.

    After `gc.freeze()` the collector lists nothing that was there before. Modules made by copying or unpickling never
    register their parts, and are found by the collector only. Modules are not kept alive.

    Example:
        >>> registry = Registry()
        >>> layer = nn.Linear(1, 1)
        >>> registry.close()
        >>> [each is layer for each in registry]
        [True]
    """

    def __init__(self) -> None:
        self._modules: dict[int, weakref.ref[nn.Module]] = {}
        self._handles = (
            register_module_module_registration_hook(self._registers),
            register_module_parameter_registration_hook(self._registers),
        )

    def _registers(self, module: nn.Module, name: str, part: object) -> None:
        key = id(module)  # a module may have an equality of its own, and no hash
        if key not in self._modules:
            self._modules[key] = weakref.ref(module, lambda _: self._modules.pop(key, None))

    def __iter__(self) -> Iterator[nn.Module]:
        return (module for each in list(self._modules.values()) if (module := each()) is not None)

    def close(self) -> None:
        """Listen no more; what was heard stays."""
        for handle in self._handles:
            handle.remove()


def stepped(optimizer: Optimizer) -> frozenset[int]:
    """Identities of the parameters that an optimiser steps.

    Args:
        optimizer: any.
    """
    return frozenset(id(parameter) for group in optimizer.param_groups for parameter in group["params"])


def models_of(optimizer: Optimizer, registry: Iterable[nn.Module] = ()) -> list[nn.Module]:
    """The models whose parameters an optimiser steps.

    A model is an outermost module with a `forward` of its own; wrappers of torch's are looked into. Where the
    parameters have no such module in common, each of the outermost ones is a model, the largest first. Where several
    modules hold the same model (a loss that keeps a reference to it), it is what they have in common.

    Args:
        optimizer: with parameters of modules.
        registry: modules that the garbage collector may not list.

    Returns:
        The models, the one with most parameters of this optimiser first; none when no living module owns them.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> found = models_of(__import__("torch").optim.SGD(net[0].parameters()))
        >>> [each is net for each in found]
        [True]
    """
    wanted = stepped(optimizer)
    # `isinstance` asks an object for its class, which wakes lazy proxies.
    living = [each for each in gc.get_objects() if issubclass(type(each), nn.Module)]
    if not wanted <= {id(parameter) for module in living for parameter in _own(module)}:
        known = {id(module) for module in living}
        living += [module for module in registry if id(module) not in known]
    candidates = [_callable(top, wanted) for top in _outermost(living, wanted)]
    models = list({id(each): each for each in map(inner_model, (one for many in candidates for one in many))}.values())
    sizes = {id(each): sum(p.numel() for p in parameters_in(each, wanted)) for each in models}
    return sorted(_common(models, wanted), key=lambda each: -sizes.get(id(each), 0))


def own_part(model: nn.Module, wanted: frozenset[int], others: frozenset[int]) -> tuple[str, nn.Module] | None:
    """The outermost part of a model that holds all of its wanted parameters and none of the others.

    Args:
        model: the whole, which is no part of itself.
        wanted: identities of parameters, as `stepped` gives them.
        others: the same, of those that must lie outside.

    Returns:
        Path and module, with a `forward` of its own; `None` where no part is so.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
        >>> body, head = (frozenset(map(id, part.parameters())) for part in net)
        >>> own_part(net, body, head)[0]
        '0'
    """
    count = len(parameters_in(model, wanted))
    module, path = model, ""
    while True:
        holding = [
            (name, child)
            for name, child in module._modules.items()
            if child is not None and len(parameters_in(child, wanted)) == count
        ]
        if not holding:
            return None
        name, module = holding[0]
        path = f"{path}.{name}" if path else name
        if _has_forward(module) and not parameters_in(module, others):
            return path, module


def parameters_in(module: nn.Module, wanted: frozenset[int]) -> list[nn.Parameter]:
    """The wanted parameters in a module and its parts, each once.

    Args:
        module: perhaps with overridden methods, none of which is called.
        wanted: identities.
    """
    found = {id(each): each for part in parts(module) for each in _own(part) if id(each) in wanted}
    return list(found.values())


def parts(module: nn.Module) -> list[nn.Module]:
    """A module and all modules within it, each once, without calling a method that it may override."""
    seen: dict[int, nn.Module] = {}
    waiting = [module]
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            waiting += [child for child in part._modules.values() if child is not None]
    return list(seen.values())


def _own(module: nn.Module) -> list[nn.Parameter]:
    # An instance whose constructor has not run yet has no dictionaries.
    return [each for each in module.__dict__.get("_parameters", {}).values() if each is not None]


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward or "forward" in module.__dict__


def _outermost(living: list[nn.Module], wanted: frozenset[int]) -> list[nn.Module]:
    """The tops above all modules that own a wanted parameter, in the order of `living`."""
    parents: dict[int, list[nn.Module]] = {}
    for module in living:
        for child in module.__dict__.get("_modules", {}).values():
            if child is not None:
                parents.setdefault(id(child), []).append(module)
    seen: set[int] = set()
    tops: set[int] = set()
    waiting = [module for module in living if any(id(each) in wanted for each in _own(module))]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        above = parents.get(id(module), [])
        waiting += above
        if not above:
            tops.add(id(module))
    return [module for module in living if id(module) in tops]


def _callable(module: nn.Module, wanted: frozenset[int]) -> list[nn.Module]:
    """The module, or what is called instead of it where it is a mere container."""
    if _has_forward(module):
        return [module]
    children = {id(child): child for child in module._modules.values() if child is not None}
    return [one for child in children.values() if parameters_in(child, wanted) for one in _callable(child, wanted)]


def _common(models: list[nn.Module], wanted: frozenset[int]) -> list[nn.Module]:
    """Of modules that hold the same parameters, the outermost that all of them hold."""
    groups: dict[frozenset[int], list[nn.Module]] = {}
    for model in models:
        groups.setdefault(frozenset(id(each) for each in parameters_in(model, wanted)), []).append(model)
    found: list[nn.Module] = []
    for held, same in groups.items():
        shared = set.intersection(*({id(part) for part in parts(each)} for each in same))
        inside = next(
            (
                part
                for part in parts(same[0])
                if id(part) in shared
                and _has_forward(part)
                and {id(each) for each in parameters_in(part, wanted)} == held
            ),
            same[0],
        )
        found.append(inside)
    return found
