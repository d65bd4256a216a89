"""`Passage`: one forward pass, followed operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from holdfast.live.hooks import HookSet
from holdfast.live.inner import inner_model
from holdfast.live.replay import Call, Mode, replay


class Passage(TorchFunctionMode):
    """Follows a replay of a model: which module runs, and which operation of torch runs inside it.

    A subclass overrides what it wants to hear. Operations inside an operation are not told: `F.relu` is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[str, nn.Module]] = []
        self._listening = False

    def follow(self, model: nn.Module, call: Call, *, mode: Mode = "as it was") -> Any:
        """Replay a call and listen.

        Args:
            model: the model; a compiled or a distributed one is looked into.
            call: what it is given.
            mode: see `replay`.

        Returns:
            What the forward returned.
        """
        hooks = HookSet()
        for path, module in inner_model(model).named_modules():
            hooks.pre(module, self._pre(path))
            hooks.post(module, self._post(path))
        self.stack.clear()
        with torch.inference_mode(False), hooks, self:  # whose tensors have no version to notice a change by
            return replay(model, call, mode=mode)

    # what a subclass may override

    def entered(self, path: str, module: nn.Module, inputs: Any) -> None:
        """A module, already on the stack, is about to run on `inputs`, `(args, kwargs)`."""

    def left(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """A module, still on the stack, has run; after one that raised `output` is `None`."""

    def before(self, function: Callable[..., Any], inputs: Any) -> Any:
        """An operation is about to run inside a module; what is returned is handed to `after`."""

    def after(self, function: Callable[..., Any], inputs: Any, output: Any, memo: Any) -> None:
        """An operation has run inside a module."""

    # machinery

    def _pre(self, path: str) -> Callable[..., None]:
        def pre(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.stack.append((path, module))
            self._tell(self.entered, path, module, (args, kwargs))

        return pre

    def _post(self, path: str) -> Callable[..., None]:
        def post(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not any(each is module for _, each in self.stack):
                return  # another hook raised before ours was told of the entry
            while self.stack[-1][1] is not module:
                self.stack.pop()
            self._tell(self.left, path, module, (args, kwargs), output)
            self.stack.pop()

        return post

    def _tell(self, listener: Callable[..., None], *what: Any) -> None:
        # What a listener itself does with tensors is no operation of the model.
        self._listening, before = True, self._listening
        try:
            listener(*what)
        finally:
            self._listening = before

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._listening or not self.stack:
            return func(*args, **kwargs)
        memo = self.before(func, (args, kwargs))
        output = func(*args, **kwargs)
        self.after(func, (args, kwargs), output, memo)
        return output
