"""`replay`: a forward pass once more, as if it had not happened."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import is_
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations, parametrize
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves, tree_map

from holdfast.core.errors import InputError, WatchError
from holdfast.core.interrupt import deferred, interruptible
from holdfast.live.inner import compiled_model, inner_model
from holdfast.live.random_state import RandomState, generator_restorer, preserved_random_state
from holdfast.live.ranks import reshard

Mode = Literal["as it was", "train", "eval"]

_DEVICES = ("cpu", "cuda", "xpu", "mps")


@dataclass(frozen=True, slots=True)
class Autocast:
    """Which devices cast automatically, and to which type.

    Args:
        enabled: the type for each device type that casts.
    """

    enabled: Mapping[str, torch.dtype]

    @classmethod
    def capture(cls) -> Autocast:
        """The present state."""
        if not torch._C._is_any_autocast_enabled():  # a third of the time of asking device by device
            return _NO_AUTOCAST
        return cls(
            {device: torch.get_autocast_dtype(device) for device in _DEVICES if torch.is_autocast_enabled(device)}
        )


_NO_AUTOCAST = Autocast({})


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a model: what it was given and the state in which it started.

    Holds references, not copies: a batch that is changed afterwards (also by the model itself, in place) is no longer
    what the call saw; `intact` tells.

    Args:
        args: the positional arguments.
        kwargs: the keyword arguments.
        random: the random generators at the start; `None` where they were not kept.
        autocast: the automatic casting at the start.
        versions: the version counter of each tensor among the arguments at the start.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    random: RandomState | None
    autocast: Autocast
    versions: tuple[int, ...] = ()

    @property
    def intact(self) -> bool:
        """Whether no tensor among the arguments was changed in place since."""
        return self.versions == _versions(self.args, self.kwargs)


def record_call(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], *, random: bool = True, python: bool = True, numpy: bool = True
) -> Call:
    """Keep what a forward pass is about to be given; meant for a pre-hook of the whole model.

    Args:
        args: the positional arguments.
        kwargs: the keyword arguments.
        random: keep the state of torch's generators; else a replay draws from all of them where they stand then.
        python: keep the state of Python's `random` too (10 µs).
        numpy: keep the state of NumPy's global generator too, where NumPy's is in use (60 µs).

    Returns:
        The call, with references to the arguments and with the present random and autocast state. Without `python` and
        `numpy` it costs a few microseconds, and a replay draws from those two where they stand then.
    """
    state = RandomState.capture(python=python, numpy=numpy) if random else None
    return Call(args, dict(kwargs), state, Autocast.capture(), _versions(args, kwargs))


def replay(
    model: nn.Module, call: Call, *, mode: Mode = "as it was", random: bool = True, compiled: bool = False
) -> Any:
    """Run a model's forward pass on a recorded call, without gradient and without a trace.

    Afterwards parameters, buffers (their identity and their version counters too), gradients, the global random
    generators, training flags, plain attributes of the modules, autocast and its cache are bit for bit what they were,
    also when the forward raises or Ctrl-C stops it. So it may run anywhere in a training loop, between forward and
    backward included.

    The forward reads clones of the buffers and of the arguments, so nothing needs to be copied back and no version
    counter moves. A compiled or a distributed model is replayed as the plain module inside, unless `compiled`. What the
    user's own hooks and objects outside of the model keep is beyond our reach: they see one more call.

    A model with lazy layers that have not run yet or with TorchScript parts is refused (`InputError`); one whose
    forward changes a parameter in place raises `WatchError` afterwards, since no replay can hide that. Spectral norm
    keeps the singular vectors of the last forward: a replay right after a training forward gives the same output.

    Args:
        model: the model.
        call: from `record_call`.
        mode: `"train"` and `"eval"` set the flag of every module directly (methods `train` that a model overrides are
            not called); `"as it was"` leaves the flags.
        random: draw the random numbers that the recorded call drew (the same dropout masks); otherwise go on
            from where the generators stand now.
        compiled: run through compiled code where there is some, for the very figures that it gave: eager execution
            rounds otherwise and draws other dropout masks from the same seed. May compile the forward once more,
            without gradients.

    Returns:
        What the forward returned.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> call = record_call((torch.randn(8, 2),), {})
        >>> output = replay(norm, call)
        >>> norm.num_batches_tracked.item(), torch.equal(output, norm(*call.args))
        (0, True)
    """
    inner = inner_model(model)
    random_state = call.random if random else None
    with (
        unseen_pass(inner, mode=mode, random=random_state, autocast=call.autocast, compiled=compiled),
        torch.no_grad(),
    ):
        args, kwargs = _cloned((call.args, dict(call.kwargs)))
        return (compiled_model(model) if compiled else inner)(*args, **kwargs)


@contextmanager
def unseen_pass(
    model: nn.Module, *, mode: Mode, random: RandomState | None, autocast: Autocast, compiled: bool = False
) -> Iterator[None]:
    """Let a model run in the block, as often as wanted, without a trace; see `replay`.

    Args:
        model: the plain module.
        mode: see `replay`.
        random: where the random generators start; where they stand now when `None`.
        autocast: the automatic casting to run under.
        compiled: whether compiled code may run.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(untouched(model, mode=mode))
        stack.enter_context(deferred())
        stack.enter_context(preserved_random_state())
        if random is not None:
            random.restore()
        stack.enter_context(_autocast(autocast))
        stack.enter_context(_plain_execution(compiled))
        stack.enter_context(interruptible())
        yield


@contextmanager
def untouched(model: nn.Module, *, mode: Mode = "as it was") -> Iterator[None]:
    """Leave buffers, training flags and plain attributes of all modules after the block as they were before.

    Within the block the modules hold clones of their buffers, of tensors among their plain attributes, and of
    embeddings that are renormalised in place. Lazy layers that have not run and TorchScript parts are refused with an
    `InputError`.

    Args:
        model: the model.
        mode: see `replay`.

    Yields:
        Nothing.

    Raises:
        WatchError: the block changed a parameter in place.
    """
    modules = list(model.modules())
    _refuse(modules)
    reshard(model)
    parameters = list(model.named_parameters())
    versions = [_version(parameter) for _, parameter in parameters]
    kept = [_Kept(module) for module in modules]
    with deferred():
        try:
            _swap(kept, mode)
            with interruptible():
                yield
        finally:
            reshard(model)  # before the modules get their parameters back, which are the shards
            for each in kept:
                each.restore()
    for (name, parameter), version in zip(parameters, versions, strict=True):
        if _version(parameter) != version:
            raise WatchError(
                "a model whose forward leaves its parameters alone",
                f"one that changes {name!r} in place at each forward, so that no forward can be repeated unseen",
                "watch without replays: hf.watch(model, optimizer, probe=None)",
            )


def _refuse(modules: list[nn.Module]) -> None:
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                "a model whose forward can be repeated unseen",
                f"a TorchScript part ({module.original_name})",
                "watch the model before torch.jit.script or torch.jit.trace",
            )
        if any(
            each is not None and is_lazy(each) for each in (*module._parameters.values(), *module._buffers.values())
        ):
            raise InputError(
                "a model whose parameters exist",
                f"a {type(module).__name__} that has not run yet",
                "run one batch first: model(batch)",
            )


# Attributes of every module that hold hooks: a set of hooks may come or go during the replay, and that must last.
_HOOKS = frozenset(nn.Module().__dict__) - {
    "training",
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_modules",
}
_CONTAINERS = frozenset({dict, OrderedDict, list, set, deque})


class _Kept:
    """The attributes of one module, the contents of the plain containers among them, the state of generators."""

    __slots__ = ("attributes", "contents", "generators", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = {name: value for name, value in module.__dict__.items() if name not in _HOOKS}
        self.contents = [(value, value.copy()) for value in self.attributes.values() if type(value) in _CONTAINERS]
        self.generators = [
            restore for value in self.attributes.values() if (restore := generator_restorer(value)) is not None
        ]

    def restore(self) -> None:
        present = self.module.__dict__
        if len(present) != len(self.attributes) + len(_HOOKS):
            for name in [name for name in present if name not in _HOOKS and name not in self.attributes]:
                del present[name]
        present.update(self.attributes)
        for value, content in self.contents:
            if (value or content) and not _same(value, content):
                value.clear()
                (value.extend if isinstance(value, list | deque) else value.update)(content)
        for restore in self.generators:
            restore()


def _same(value: Any, content: Any) -> bool:
    # By identity: a tensor's == is not one truth value.
    if isinstance(value, set):
        return value == content
    if len(value) != len(content) or not all(map(is_, value, content)):
        return False
    return not isinstance(value, dict) or all(map(is_, value.values(), content.values()))


def _swap(kept: list[_Kept], mode: Mode) -> None:
    """Give every module clones of what its forward may write to."""
    renormalised = {
        id(each.module._parameters.get("weight"))
        for each in kept
        if isinstance(each.module, nn.Embedding | nn.EmbeddingBag) and each.module.max_norm is not None
    } - {id(None)}
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    for each in kept:
        module = each.module
        attributes = module.__dict__
        if isinstance(module, parametrizations._SpectralNorm):
            attributes["training"] = False  # no power iteration beyond the one of the training forward
        elif mode != "as it was":
            attributes["training"] = mode == "train"
        places += [(module._buffers, name, buffer) for name, buffer in module._buffers.items() if buffer is not None]
        places += [(attributes, name, value) for name, value in each.attributes.items() if _is_plain(value)]
        if renormalised:
            for name, parameter in module._parameters.items():
                if id(parameter) in renormalised:
                    places.append((module._parameters, name, parameter))  # type: ignore[arg-type]
    clones = _clones([tensor for _, _, tensor in places])
    for holder, name, tensor in places:
        holder[name] = clones[id(tensor)]


def _is_plain(value: object) -> bool:
    # A tensor with a graph is some forward's output, which a later forward replaces rather than changes.
    return isinstance(value, Tensor) and value.grad_fn is None and not value.requires_grad


@torch.no_grad()
def _clones(tensors: list[Tensor]) -> dict[int, Tensor]:
    """A clone for each tensor by its identity; tensors that share memory have clones that share memory."""
    distinct = list({id(tensor): tensor for tensor in tensors}.values())
    keys = [
        tensor.untyped_storage()._cdata if type(tensor) is Tensor and tensor.layout is torch.strided else None
        for tensor in distinct
    ]
    users = Counter(keys)
    storages: dict[Any, torch.UntypedStorage] = {}
    clones: dict[int, Tensor] = {}
    for tensor, key in zip(distinct, keys, strict=True):
        if isinstance(tensor, nn.Parameter):
            clone: Tensor = nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
        elif key is None or users[key] == 1:
            clone = tensor.detach().clone()
        else:
            if key not in storages:
                storages[key] = tensor.untyped_storage().clone()  # type: ignore[no-untyped-call]
            clone = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            clone.set_(storages[key], tensor.storage_offset(), tensor.size(), tensor.stride())
        clones[id(tensor)] = clone
    return clones


def _cloned(tree: Any) -> Any:
    """The same arguments, but with clones of the tensors: a model may begin with an in-place operation."""
    memo: dict[int, Tensor] = {}

    def clone(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in memo:
            memo[id(leaf)] = leaf.detach().clone().requires_grad_(leaf.requires_grad)
        return memo[id(leaf)]

    return tree_map(clone, tree)


def _version(tensor: Tensor) -> int:
    # Inference tensors count no versions.
    return -1 if tensor.is_inference() else tensor._version


def _versions(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    if not kwargs and len(args) == 1 and isinstance(args[0], Tensor):
        return (_version(args[0]),)
    return tuple(_version(leaf) for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor))


@contextmanager
def _autocast(wanted: Autocast) -> Iterator[None]:
    """Cast as recorded, and without the cache: it would hand out stale weights after an update."""
    present = Autocast.capture()
    cached = torch.is_autocast_cache_enabled()
    types = {device: torch.get_autocast_dtype(device) for device in {*present.enabled, *wanted.enabled}}
    try:
        torch.set_autocast_cache_enabled(False)
        for device in types:
            torch.set_autocast_enabled(device, device in wanted.enabled)
            torch.set_autocast_dtype(device, wanted.enabled.get(device, types[device]))
        yield
    finally:
        for device, kind in types.items():
            torch.set_autocast_enabled(device, device in present.enabled)
            torch.set_autocast_dtype(device, kind)
        torch.set_autocast_cache_enabled(cached)


@contextmanager
def _plain_execution(compiled: bool) -> Iterator[None]:
    """Run every module's own forward: no fused inference kernel that skips the inner layers, no compiled code."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules and not compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if parametrize._cache_enabled:
            # within `parametrize.cached()`: what is computed without a graph must not be handed to the training
            stack.callback(setattr, parametrize, "_cache_enabled", parametrize._cache_enabled)
            parametrize._cache_enabled = 0
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        # A reentrant checkpoint warns that there will be no gradient: there should be none here.
        stack.callback(setattr, checkpoint, "check_backward_validity", checkpoint.check_backward_validity)
        checkpoint.check_backward_validity = lambda inputs: None
        yield
