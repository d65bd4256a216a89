"""`HookSet`: hooks on a live model that come and go in microseconds and that no copy of the model keeps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import CodeType, TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from holdfast.core.errors import WatchError
from holdfast.live.traced import Listener, Outlet, named_tensors, observe

PreFunction = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], object]
PostFunction = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], object]


class HookSet:
    """A set of forward hooks that is attached and detached as one.

    A training loop that is observed at every hundredth step pays for hooks only there: attaching or detaching twenty
    hooks takes a few microseconds, while twenty hooks that merely look at a flag cost 2 % of a small network's step.

    What is attached is an object of ours; a deep copy or a pickle of the model holds a standard-library function that
    does nothing in its place, so that copies report to nobody and files name no class of ours. In another process than
    the one that made the set (a forked data loader) and on a shallow copy of the module (a replica of
    `nn.DataParallel`) the hooks do nothing.

    `torch.compile` traces the hooks that are attached when a module is compiled, at its first call. In compiled code a
    hook tells its tensors to the function given as `traced`, one by one, instead of calling its own; while exporting it
    leaves nothing. What was traced stays on the module when the set is detached, or the code would be compiled anew,
    and is silent until the set is attached again.

    Used as a context manager it attaches on entry and closes on exit, also when the body raises.

    Example:
        >>> layer, seen = nn.Linear(2, 3), []
        >>> hooks = HookSet()
        >>> hooks.post(layer, lambda module, args, kwargs, output: seen.append(tuple(output.shape)))
        >>> with hooks:
        ...     _ = layer(torch.zeros(4, 2))
        >>> _ = layer(torch.zeros(4, 2))
        >>> seen
        [(4, 3)]
    """

    def __init__(self) -> None:
        self._hooks: list[_Hook] = []
        self._attached = False
        self._closed = False

    def pre(
        self, module: nn.Module, function: PreFunction, *, traced: Listener | None = None, first: bool = False
    ) -> None:
        """Call `function(module, args, kwargs)` before each forward; what it returns is ignored.

        Args:
            module: the module to listen to.
            function: must not change what it is given.
            traced: called in compiled code with each tensor among the arguments, see `Outlet`.
            first: tell only the first of them, as a sign that the forward begins.
        """
        self._add(_PreHook(module, function, _outlets(traced), first))

    def post(
        self,
        module: nn.Module,
        function: PostFunction,
        *,
        traced: Listener | None = None,
        gradient: Listener | None = None,
    ) -> None:
        """Call `function(module, args, kwargs, output)` after each forward, also after one that raised.

        Args:
            module: the module to listen to.
            function: must not change what it is given. After a forward that raised, `output` is `None`.
            traced: called in compiled code with each tensor of the output, see `Outlet`.
            gradient: called with the gradient at each of these tensors, on the way back.
        """
        self._add(_PostHook(module, function, _outlets(traced, gradient)))

    def _add(self, hook: _Hook) -> None:
        if self._closed:
            raise WatchError("a set of hooks in use", "one that was closed", "make a new HookSet()")
        self._hooks.append(hook)
        if self._attached:
            hook.attach()

    @property
    def attached(self) -> bool:
        """Whether the hooks are on the modules."""
        return self._attached

    @property
    def traced(self) -> list[nn.Module]:
        """The modules that tell from compiled code."""
        return [hook.module for hook in self._hooks if hook.traced]

    @property
    def closed(self) -> bool:
        """Whether the hooks are off for good."""
        return self._closed

    def __len__(self) -> int:
        return len(self._hooks)

    def attach(self) -> None:
        """Put the hooks on their modules, after all hooks that are there; a second call does nothing.

        Raises:
            WatchError: the set is closed.
        """
        if self._closed:
            raise WatchError("a set of hooks in use", "one that was closed", "make a new HookSet()")
        if not self._attached:
            self._attached = True
            _ATTACHED.add(self)
            for hook in self._hooks:
                hook.attach()

    def detach(self) -> None:
        """Take the hooks off, exactly these, and silence those that were traced; a second call does nothing."""
        if self._attached:
            self._attached = False
            _ATTACHED.discard(self)
            for hook in self._hooks:
                hook.detach()

    def close(self) -> None:
        """Take the hooks off for good and forget modules and functions; a second call does nothing."""
        self.detach()
        for hook in self._hooks:
            hook.remove()
        self._closed = True
        self._hooks.clear()

    def __enter__(self) -> HookSet:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_ATTACHED: WeakSet[HookSet] = WeakSet()


@contextmanager
def all_detached() -> Iterator[None]:
    """Take every attached set of hooks off while the block runs: a replay is nobody's forward pass.

    Two models may share a layer, and one model may be watched for each of its optimisers; the passes of one watch's
    probes must not be read by another. What is attached inside the block is the block's own.

    Yields:
        Nothing.
    """
    attached = list(_ATTACHED)
    for hooks in attached:
        hooks.detach()
    try:
        yield
    finally:
        for hooks in attached:
            if not hooks.closed:
                hooks.attach()


def on_gradient(tensor: Tensor, function: Callable[[Tensor], object]) -> RemovableHandle | None:
    """Call `function(gradient)` when the gradient of a tensor is ready; the gradient itself stays as it is.

    A tensor hook is the one kind that stays exact when the tensor is changed in place afterwards: full backward hooks
    raise and `retain_grad` is silently wrong.

    Args:
        tensor: any tensor that requires a gradient.
        function: is called under `torch.no_grad()`, once for each backward pass, with the total gradient, which may be
            expanded (stride 0). What it returns is ignored.

    Returns:
        The handle, with `remove()`; `None` when the tensor requires no gradient.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> _ = on_gradient(x, lambda gradient: print(gradient.tolist()))
        >>> (3 * x).sum().backward()
        [3.0, 3.0]
    """
    if not tensor.requires_grad:
        return None
    hook = _GradientHook(function)
    return tensor.register_hook(hook)  # type: ignore[no-untyped-call]


# A bound method of a standard-library object: takes any arguments, returns None, and pickles as
# `getattr(nullcontext(), "__exit__")`. A lambda cannot be pickled, a function of ours would be named in the file.
_NOTHING = nullcontext().__exit__


class _Silent:
    """What turns into a standard-library function that does nothing when it is copied or pickled."""

    __slots__ = ()

    def __copy__(self) -> Callable[..., None]:
        return _NOTHING

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _NOTHING

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def _outlets(*listeners: Listener | None) -> tuple[Outlet | None, ...]:
    return tuple(None if each is None else Outlet(each) for each in listeners)


class _Hook(_Silent):
    """One hook on one module, with the key under which it stands in the module's dictionaries.

    A call is none of its business when it is off, on a copy of the module, or in another process.
    """

    __slots__ = ("function", "key", "module", "on", "outlets", "process")

    # the module's dictionary of hooks, and those that flag a hook's key
    hooks: str
    flags: tuple[str, ...]

    def __init__(self, module: nn.Module, function: Callable[..., object], outlets: tuple[Outlet | None, ...]) -> None:
        self.module = module
        self.function = function
        self.outlets = outlets
        self.on = False
        self.process = os.getpid()
        # A handle of torch's own draws the key, so that it is never used twice.
        self.key = RemovableHandle(_Keys()).id

    @property
    def __name__(self) -> str:
        # torch.jit.script asks every hook for its name, to compile it.
        raise _ScriptError(
            "a model that nobody watches",
            "one with the hooks of a watch on it",
            "call .close() on the run before torch.jit.script(model)",
        )

    @property
    def traced(self) -> bool:
        """Whether it stands in compiled code."""
        return any(outlet is not None and outlet.traced for outlet in self.outlets)

    def attach(self) -> None:
        self._switch(True)
        hooks = getattr(self.module, self.hooks)
        if self.key not in hooks:
            hooks[self.key] = self
            for flag in self.flags:
                getattr(self.module, flag)[self.key] = True

    def detach(self) -> None:
        self._switch(False)
        if not self.traced:
            self.remove()

    def remove(self) -> None:
        for name in (self.hooks, *self.flags):
            getattr(self.module, name).pop(self.key, None)

    def _switch(self, on: bool) -> None:
        self.on = on
        for outlet in self.outlets:
            if outlet is not None:
                outlet.open = on


class _ScriptError(WatchError, AttributeError):
    """So that whoever only asks whether a hook has a name is told that it has none."""


class _Keys(dict[int, Any]):
    """A dictionary that can be referred to weakly, as a handle asks for."""


class _PreHook(_Hook):
    __slots__ = ("first",)
    hooks = "_forward_pre_hooks"
    flags = ("_forward_pre_hooks_with_kwargs",)

    def __init__(
        self, module: nn.Module, function: PreFunction, outlets: tuple[Outlet | None, ...], first: bool
    ) -> None:
        super().__init__(module, function, outlets)
        self.first = first

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            (outlet,) = self.outlets
            if outlet is not None and not torch.compiler.is_exporting():
                tensors = named_tensors((args, kwargs) if kwargs else args)
                for leaf, tensor in tensors[:1] if self.first else tensors:
                    observe(tensor, outlet.number, leaf, torch.is_grad_enabled())
        elif self.on and module is self.module and os.getpid() == self.process:
            self.function(module, args, kwargs)


class _PostHook(_Hook):
    __slots__ = ()
    hooks = "_forward_hooks"
    # Always called: early stop of a recomputation raises through module calls, and a stack kept by hooks would stay
    # unbalanced.
    flags = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called")

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling():
            outlet, back = self.outlets
            if not torch.compiler.is_exporting():
                for leaf, tensor in named_tensors(output):
                    if outlet is not None:
                        observe(tensor, outlet.number, leaf, torch.is_grad_enabled())
                    if back is not None and tensor.requires_grad:
                        tensor.register_hook(_TracedGradientHook(back, leaf))  # type: ignore[no-untyped-call]
        elif self.on and module is self.module and os.getpid() == self.process:
            self.function(module, args, kwargs, output)


def _never_compile(code: CodeType) -> None:
    """Let Dynamo trace a function into the code around it, but never compile it, or what it calls, by itself.

    The hooks of the outermost compiled module run outside of the compiled code. Compiled by themselves they would fill
    the few places that Dynamo has for the variants of one function, and make a `fullgraph=True` fail.
    """
    dynamo: Any = torch._C._dynamo.eval_frame
    if hasattr(dynamo, "set_code_exec_strategy"):  # not in torch 2.6
        skip = dynamo._FrameAction.SKIP
        dynamo.set_code_exec_strategy(code, dynamo._FrameExecStrategy(skip, skip))


_never_compile(_PreHook.__call__.__code__)
_never_compile(_PostHook.__call__.__code__)


class _TracedGradientHook(_Silent):
    __slots__ = ("leaf", "outlet")

    def __init__(self, outlet: Outlet, leaf: str) -> None:
        self.outlet = outlet
        self.leaf = leaf

    def __call__(self, gradient: Tensor) -> None:
        if torch.compiler.is_compiling():
            observe(gradient, self.outlet.number, self.leaf, True)
        else:  # at an output of the compiled graph
            self.outlet.hear(gradient, self.leaf, True)


class _GradientHook(_Silent):
    __slots__ = ("function", "process")

    # torch.save warns of hooks that it drops, except of those that say they mean it
    __torch_unserializable__ = True

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        self.function = function
        self.process = os.getpid()

    def __call__(self, gradient: Tensor) -> None:
        if torch.compiler.is_compiling() or os.getpid() != self.process:
            return
        if torch.is_grad_enabled():  # a graph of the backward pass itself is wanted
            with torch.no_grad():
                self.function(gradient)
        else:
            self.function(gradient)
