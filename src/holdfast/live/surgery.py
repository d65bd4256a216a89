"""Surgery: modules of a live model exchanged, its optimiser mended in place, and all of it taken back.

A *policy* `(module, path) → module or None` says what takes the place of each module; `operate` applies it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from holdfast.core.errors import SurgeryError
from holdfast.live.optimiser import Groups, check_optimizer


@runtime_checkable
class Policy(Protocol):
    """What takes the place of a module."""

    def __call__(self, module: nn.Module, path: str) -> nn.Module | None:
        """Decide about one module.

        Called once for each distinct module, outer before inner, with the first of its paths. The modules inside a
        replaced one are not asked about. It must change nothing.

        Args:
            module: as it is.
            path: as `named_modules` gives it.

        Returns:
            A module that the model does not hold yet (it may contain `module` itself), or `None` to leave it.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Replacement:
    """One module that took the place of another.

    Args:
        paths: everywhere the old one was, and the new one is.
        old: the module taken out (or wrapped).
        new: the module put in.
    """

    paths: tuple[str, ...]
    old: nn.Module
    new: nn.Module

    def __str__(self) -> str:
        return f"{' = '.join(self.paths)}: {one_line(self.old)} → {one_line(self.new)}"


@dataclass(frozen=True, slots=True, eq=False)
class Surgery:
    """What was exchanged, and how to take it back.

    Args:
        replacements: the modules.
        renamed: keys of the `state_dict` that name the same tensor as before under another name, old → new.
        added: keys of the `state_dict` that are new.
        removed: keys of the `state_dict` that are gone.
        optimiser: one line for each change in the optimiser.
        changes: one line for each thing changed, for a receipt.
        undo_: what `undo` does.
    """

    replacements: tuple[Replacement, ...]
    renamed: Mapping[str, str]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    optimiser: tuple[str, ...]
    changes: tuple[str, ...]
    undo_: Callable[[], None]

    def undo(self) -> None:
        """Put the same modules, parameters, groups and state back, in the same order.

        What training did since to tensors that stayed in the model is kept; tensors and state that the surgery
        brought in are dropped. Refused with `SurgeryError`, nothing changed, when the same places or groups were
        changed again since.
        """
        self.undo_()


def operate(model: nn.Module, optimizer: Optimizer | None, policy: Policy) -> Surgery:
    """Exchange modules of a live model; all or nothing.

    Shared modules stay shared. What is new takes the type, device, mode and `requires_grad` of what it replaces, and
    its call hooks: the very dictionaries, so that handles taken earlier still remove. Parameters that the new module
    takes over from the old one stay the same objects with their optimiser state; new ones enter the groups of the
    old one's, vectors beside vectors, in the order of `parameters()`; those that leave the model leave the optimiser.
    Groups, their lists and the optimiser itself stay the same objects, so that a scheduler goes on. What cannot be
    done safely is refused with `SurgeryError` before anything is changed.

    Args:
        model: the model.
        optimizer: the one that steps it, or `None` when there is none yet.
        policy: what takes the place of what.

    Returns:
        What was exchanged; empty when the policy left everything.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
        >>> surgery = operate(model, None, lambda module, path: nn.ReLU() if type(module) is nn.Sigmoid else None)
        >>> surgery.changes
        ('1: Sigmoid() → ReLU()',)
        >>> surgery.undo()
        >>> model[1]
        Sigmoid()
    """
    check_model(model)
    if optimizer is not None:
        check_optimizer(model, optimizer)
    replacements = _decide(model, policy)
    for each in replacements:
        check_place(model, each.old, each.paths[0])
    before = _keys(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for each in replacements:
        _dress(each, model)
    places = [_Place(parent, name, each) for each in replacements for parent, name in _parents(model, each.old)]
    groups = Groups(optimizer)

    def restore() -> None:
        for place in places:
            place.put_back()
        groups.restore()

    def undo() -> None:
        for place in places:
            place.check()
        groups.check()
        restore()

    try:
        for place in places:
            place.put_in()
        lines = groups.mend(model, [(each.old, each.new) for each in replacements], names)
        renamed, added, removed = _compare(before, _keys(model))
        changes = (
            *map(str, replacements),
            *(f"state_dict key {old} → {new}" for old, new in renamed.items()),
            *(f"state_dict key none → {key}" for key in added),
            *(f"state_dict key {key} → none" for key in removed),
            *lines,
        )
    except BaseException:  # Ctrl-C among them
        restore()
        raise
    return Surgery(replacements, renamed, added, removed, lines, changes, undo)


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """One entry of one parent's modules."""

    parent: nn.Module
    name: str
    replacement: Replacement

    def put_in(self) -> None:
        self.parent._modules[self.name] = self.replacement.new

    def put_back(self) -> None:
        self.parent._modules[self.name] = self.replacement.old

    def check(self) -> None:
        present = self.parent._modules.get(self.name)
        if present is not self.replacement.new:
            raise SurgeryError(
                f"the {type(self.replacement.new).__name__} that was put in at {self.replacement.paths[0]}",
                f"a {type(present).__name__}, put there since",
                "undo the later change first",
            )


def check_model(model: nn.Module) -> None:
    """Refuse a model whose modules cannot be exchanged safely.

    Args:
        model: the model.

    Raises:
        SurgeryError: it is wrapped for distribution, compiled, scripted or traced, sharded, or not yet initialised.
    """
    for path, module in model.named_modules():
        bases = {base.__name__ for base in type(module).__mro__}
        where = f"{path or 'the model'} ({type(module).__name__})"
        if bases & {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DataParallel"}:
            raise SurgeryError(
                "a model that is not wrapped for distribution",
                f"{where}, which holds on to the present parameters",
                "operate on the plain model, then wrap it",
            )
        if "OptimizedModule" in bases or getattr(module, "_compiled_call_impl", None) is not None:
            raise SurgeryError(
                "a model that is not compiled",
                f"{where}, whose compiled code holds the present layers",
                "operate on the plain model, then type: model = torch.compile(model)",
            )
        if bases & {"ScriptModule", "GraphModule"}:
            raise SurgeryError(
                "a model that is not scripted or traced",
                f"{where}, whose code was fixed when it was made",
                "operate on the Python model, then script or trace it",
            )
        for name, parameter in module._parameters.items():
            if isinstance(parameter, UninitializedParameter):
                raise SurgeryError(
                    "a model whose parameters exist",
                    f"{where}, whose {name} has no shape yet",
                    "run one batch first: model(batch)",
                )
            if type(parameter).__name__ == "DTensor":
                raise SurgeryError(
                    "a model whose parameters are whole",
                    f"{where}, whose {name} is sharded over processes",
                    "operate on the plain model, then shard it",
                )


def check_place(model: nn.Module, module: nn.Module, path: str) -> None:
    """Refuse to exchange a module that would stay in use elsewhere, or whose parent reads into it.

    Args:
        model: the whole model.
        module: what would be exchanged.
        path: where it is.

    Raises:
        SurgeryError: a plain attribute or list holds it too, or one of torch's own composites does.
    """
    for holder_path, holder in model.named_modules():
        for name, value in holder.__dict__.items():
            if name != "_modules" and _mentions(value, module):
                raise SurgeryError(
                    "a module that is reached through its parent only",
                    f"{path}, which {holder_path or 'the model'} also keeps in its plain attribute {name!r}",
                    "use torch.nn.ModuleList (or ModuleDict) there",
                )
    for parent, name in _parents(model, module):
        kind = type(parent)
        if kind.__module__.startswith("torch.nn.") and not issubclass(kind, _CONTAINERS):
            raise SurgeryError(
                "a module of your own model or of a container",
                f"{path}, which torch.nn.{kind.__name__} reads by its attribute {name!r} in its own way",
                f"write the block out instead of torch.nn.{kind.__name__}, or leave this layer",
            )


def one_line(module: nn.Module) -> str:
    """A module as a person would type it, on one line.

    Args:
        module: any.

    Returns:
        Its class with its settings and its children.

    Example:
        >>> one_line(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
        'Sequential(0=Linear(in_features=2, out_features=3, bias=True), 1=ReLU())'
    """
    inner = [module.extra_repr()] if module.extra_repr() else []
    inner += [f"{name}={one_line(child)}" for name, child in module.named_children()]
    return f"{type(module).__name__}({', '.join(inner)})"


def _decide(model: nn.Module, policy: Policy) -> tuple[Replacement, ...]:
    """Ask the policy about every module, outer before inner; nothing is changed."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    present = set(paths)
    replacements = []
    inside: set[int] = set()
    for path, module in model.named_modules():
        if id(module) in inside:
            continue
        new = policy(module, path)
        if new is None or new is module:
            continue
        if not path:
            raise SurgeryError(
                "a place inside the model",
                f"the model itself ({type(module).__name__}), which cannot be exchanged in place",
                "wrap it first: model = torch.nn.Sequential(model)",
            )
        within = {id(each) for each in module.modules()}
        if id(new) in present:
            raise SurgeryError(
                f"a new module for {path}",
                f"a {type(new).__name__} that the model holds elsewhere",
                "let the policy make a module of its own for each place",
            )
        inside |= within
        replacements.append(Replacement(tuple(paths[id(module)]), module, new))
    return tuple(replacements)


def _parents(model: nn.Module, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is module:
                yield parent, name


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _mentions(value: object, module: nn.Module) -> bool:
    if isinstance(value, Mapping):
        return any(each is module for each in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(each is module for each in value)
    return value is module


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _dress(replacement: Replacement, model: nn.Module) -> None:
    """Give what is new the type, device, mode, `requires_grad` and hooks of what it replaces."""
    old, new = replacement.old, replacement.new
    kept = {id(module) for module in old.modules()}
    trained = {name: parameter.requires_grad for name, parameter in old.named_parameters()}
    own = {id(parameter) for parameter in old.parameters()}
    example = _example(replacement, model)
    for path, module in new.named_modules():
        if id(module) in kept:
            continue
        module.training = old.training
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in own:
                continue
            full = f"{path}.{name}" if path else name
            # frozen like its namesake; without one, frozen only if all that it replaces or wraps is
            wanted = trained.get(full, any(trained.values()) if trained else True)
            module._parameters[name] = _as(parameter, example).requires_grad_(wanted)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _as(buffer, example)
    if id(old) not in {id(module) for module in new.modules()}:
        for attribute in _HOOKS:
            theirs, hooks = getattr(new, attribute), getattr(old, attribute)
            setattr(new, attribute, OrderedDict({**hooks, **theirs}) if theirs else hooks)
        new._is_full_backward_hook = old._is_full_backward_hook


def _example(replacement: Replacement, model: nn.Module) -> Tensor | None:
    """A tensor whose type and device the new ones take: the old module's first, else its nearest parent's."""
    path = replacement.paths[0]
    while True:
        module = model.get_submodule(path)
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor
        if not path:
            return None
        path = path.rpartition(".")[0]


def _as(tensor: Any, example: Tensor | None) -> Any:
    if example is None:
        return tensor
    dtype = example.dtype if tensor.is_floating_point() else tensor.dtype
    if tensor.dtype == dtype and tensor.device == example.device:
        return tensor
    moved = tensor.detach().to(device=example.device, dtype=dtype)
    return nn.Parameter(moved, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


def _keys(model: nn.Module) -> dict[str, Any]:
    return dict(model.state_dict(keep_vars=True))


def _compare(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """Which keys name the same tensor under another name, which are new, which are gone."""
    gone = [key for key in before if key not in after]
    new = [key for key in after if key not in before]
    renamed = {}
    for old in gone:
        match = next((key for key in new if after[key] is before[old]), None)
        if match is not None:
            renamed[old] = match
            new.remove(match)
    return renamed, tuple(new), tuple(key for key in gone if key not in renamed)
