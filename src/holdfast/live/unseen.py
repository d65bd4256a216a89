"""`unseen`: what hooks cannot see in a model, in sentences."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from torch import nn

from holdfast.live.flow import Flow
from holdfast.live.inner import inner_model
from holdfast.live.leaves import OPAQUE
from holdfast.live.operations import ACTIVATIONS, FUSED, LAYERS, NORMALISERS


def compiled_regions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The outermost parts of a model that `torch.compile` was put on.

    Args:
        model: as the user has it, not unwrapped.

    Returns:
        Path and module in the plain model. A model that was wrapped, or called by a function that was compiled, out of
        our sight is not known here.
    """
    inner = inner_model(model)
    for module in model.modules():
        if is_compiled(module):
            return [("", inner)]
        if module is inner:
            break
    regions = [(path, module) for path, module in inner.named_modules() if is_compiled(module)]
    return [(path, module) for path, module in regions if not any(_inside(path, other) for other, _ in regions)]


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile(module)` made this module, or `module.compile()` was called."""
    wrapped = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    return isinstance(module, wrapped) or module._compiled_call_impl is not None


def _inside(path: str, outer: str) -> bool:
    return path != outer and (outer == "" or path.startswith(f"{outer}."))


def unseen(model: nn.Module, flow: Flow) -> list[str]:
    """One sentence for each part of a model that hooks on its leaves do not see.

    Args:
        model: the plain module.
        flow: one pass through it, followed.

    Returns:
        Sentences for a person, without a capital and without a full stop; empty when everything is seen.
    """
    return [*_fused(model, flow), *_bypassed(model, flow), *_functional(flow), *_idle(model, flow)]


def _fused(model: nn.Module, flow: Flow) -> Iterator[str]:
    attention = [path for path, module in _ran(model, flow) if isinstance(module, nn.MultiheadAttention)]
    recurrent = [path for path, module in _ran(model, flow) if isinstance(module, nn.RNNBase)]
    if attention:
        what = "the output projection and, but for the measure attention-saturation, the attention scores"
        yield f"{what} inside nn.MultiheadAttention: {_list(attention)}"
    if recurrent:
        what = "the steps in time and, but for the measure gate-saturation, the gates"
        yield f"{what} inside nn.LSTM, nn.GRU or nn.RNN: {_list(recurrent)}"
    for name, what in FUSED.items():
        owners = [call.owner for call in flow.functional if call.name == name]
        if owners:
            again = ", but for the measure attention-saturation" if what == "attention scores" else ""
            yield f"the {what} inside {name}, which is one fused operation{again}: {_list(owners)}"


def _bypassed(model: nn.Module, flow: Flow) -> Iterator[str]:
    """Modules with parameters of their own that were used although the module was not called."""
    fired: set[int] = set()
    hidden: set[nn.Module] = set()
    for path, module in model.named_modules():
        if flow.calls.get(path):
            fired.update(flow.parameters.get(path, ()))
        if isinstance(module, OPAQUE):
            hidden.update(module.modules())
    for path, module in model.named_modules():
        mine = [key for key in flow.parameters.get(path, ()) if key in flow.used and key not in fired]
        if mine and not flow.calls.get(path) and module not in hidden:
            users = sorted(set().union(*(flow.used[key] for key in mine)))
            yield (
                f"what flows through {_name(path)}: its parameters are used by {_list(users)} without calling the "
                "module (by its .forward(), or directly), so no hook fires"
            )


def _functional(flow: Flow) -> Iterator[str]:
    by_name: dict[str, list[str]] = {}
    for call in flow.functional:
        if call.name in ACTIVATIONS | NORMALISERS | LAYERS:
            by_name.setdefault(call.name, []).append(call.owner)
    for name, owners in by_name.items():
        yield f"the output of {name}, called as a function, except where a layer takes it as its input: {_list(owners)}"


def _idle(model: nn.Module, flow: Flow) -> Iterator[str]:
    """The outermost modules of which nothing ran and nothing was used."""
    holding: set[str] = set()
    active: set[str] = set()
    for path, _ in model.named_modules():
        keys = flow.parameters.get(path, ())
        if keys:
            holding.update(_upwards(path))
        if flow.calls.get(path) or any(key in flow.used for key in keys):
            active.update(_upwards(path))
    idle = [path for path, _ in model.named_modules() if path in holding and path not in active]
    outermost = [path for path in idle if path.rpartition(".")[0] in active]
    if outermost:
        yield f"parts with parameters that did not run on this batch: {_list(outermost)}"


def _upwards(path: str) -> Iterator[str]:
    """A path and those of all modules around it, the model's last."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _ran(model: nn.Module, flow: Flow) -> Iterator[tuple[str, nn.Module]]:
    return ((path, module) for path, module in model.named_modules() if flow.calls.get(path))


def _list(paths: Iterable[str]) -> str:
    """Names joined for a person, the first three of many."""
    names = [_name(path) for path in dict.fromkeys(paths)]
    if len(names) <= 4:
        return ", ".join(names)
    return f"{', '.join(names[:3])} and {len(names) - 3} more"


def _name(path: str) -> str:
    return path or "(model)"
