"""The loss of a step, taken from the root of `backward()`, so that no loop has to be changed."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class LossTap:
    """Listens to `torch.autograd.backward` while anybody watches.

    `Tensor.backward` goes through `torch.autograd.backward`, so one replaced function sees every root. The scalar
    roots since the last optimiser step belong to the next optimiser that steps: their sum is the function whose
    gradient that step follows (gradient accumulation, a discriminator's two losses). Further optimisers that step
    before the next `backward` follow the same function. A root that a gradient scaler made is heard as it was before;
    when the scaler skips a step, what was heard for it is forgotten.

    Install with `open`, take back with `close`; both count, so that several watches share one tap.
    """

    def __init__(self) -> None:
        self._listeners: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._resting: set[int] = set()
        self._roots: list[Tensor] = []
        self._spent: list[Tensor] = []  # roots that belonged to a step
        self._spenders: set[int] = set()  # and whose
        self._listening = False
        self._replaced: dict[tuple[Any, str], tuple[Any, Any]] = {}  # owner and name → the original and ours
        self._steps: Any = None
        self._pid = 0
        self._afterwards: list[Callable[[], None]] = []
        self._scaled: tuple[weakref.ref[Tensor], Tensor, GradScaler] | None = None
        self._scaler: GradScaler | None = None

    def open(self, skipped: Callable[[], None]) -> None:
        """Start listening.

        Args:
            skipped: a bound method, called when a gradient scaler has skipped a step; not kept alive.
        """
        self._listeners.append(weakref.WeakMethod(skipped))
        if self._steps is None:
            self._pid = os.getpid()
            self._forget()
            # Runs after the stepping optimiser's own hooks, and so after its watch has taken the loss.
            self._steps = register_optimizer_step_post_hook(self._stepped)
        self._listen()

    def close(self, skipped: Callable[[], None]) -> None:
        """Stop listening; the last to close puts torch's functions back.

        Args:
            skipped: as given to `open`.
        """
        self._listeners = [each for each in self._listeners if each() not in (None, skipped)]
        self._listen()
        if not self._listeners and self._steps is not None:
            self._steps.remove()
            self._steps = None

    def rest(self, who: object) -> None:
        """Tell that a listener needs nothing until it wakes; when all rest, losses pass unheard.

        Args:
            who: rests.
        """
        self._resting.add(id(who))
        self._listen()

    def wake(self, who: object) -> None:
        """End a rest.

        Args:
            who: rested.
        """
        self._resting.discard(id(who))
        self._listen()

    def take(self, optimizer: Optimizer, *, first: bool = False, again: bool = False) -> float | None:
        """The loss since the last step, and forget it.

        Args:
            optimizer: whose step it is.
            first: only the first root, for an optimiser that evaluates its closure several times a step.
            again: where there is none, the loss that was taken last: a second optimiser of the same model, or a second
                model of the same optimiser, follows the gradient of the same backward pass.

        Returns:
            The sum of the roots, `None` when no scalar root was seen.
        """
        if self._roots or id(optimizer) not in self._spenders:
            self._spend(optimizer)
            roots = self._spent
        else:
            roots = self._spent if again else []
        if not roots:
            return None
        return float(sum(float(root) for root in (roots[:1] if first else roots)))

    @property
    def roots(self) -> int:
        """Backward passes heard since the last step."""
        return len(self._roots)

    def afterwards(self, function: Callable[[], None]) -> None:
        """Call a function once the backward pass under way is over.

        Args:
            function: without arguments.
        """
        self._afterwards.append(function)

    @property
    def scale(self) -> float:
        """By what the gradients at the layers' outputs were multiplied in the step under way."""
        return 1.0 if self._scaler is None else float(self._scaler.get_scale())

    # What stands in for torch's functions; each calls the original first or last, and changes nothing about it.

    def _listen(self) -> None:
        """Put ours in place of torch's functions, or torch's back, as somebody needs them or nobody does."""
        wanted = len(self._listeners) > len(self._resting)
        if wanted == self._listening:
            return
        self._listening = wanted
        if wanted:
            self._replace(torch.autograd, "backward", self._backward)
            self._replace(GradScaler, "scale", self._scale)
            self._replace(GradScaler, "update", self._update)
            return
        self._forget()
        for place, (original, ours) in list(self._replaced.items()):
            # Somebody may have wrapped ours since: theirs stays, and ours within it hears nothing meanwhile.
            if getattr(*place) is ours:
                setattr(*place, original)
                del self._replaced[place]

    def _replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        if (owner, name) not in self._replaced:
            original = getattr(owner, name)
            ours = functools.wraps(original)(make(original))
            setattr(owner, name, ours)
            self._replaced[owner, name] = original, ours

    def _backward(self, original: Any) -> Any:
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            self._hear(tensors)
            try:
                return original(tensors, *args, **kwargs)
            finally:
                while self._afterwards:
                    self._afterwards.pop()()

        return backward

    def _scale(self, original: Any) -> Any:
        def scale(scaler: GradScaler, outputs: Any) -> Any:
            scaled = original(scaler, outputs)
            if self._hears and isinstance(outputs, Tensor) and isinstance(scaled, Tensor):
                self._scaled = (weakref.ref(scaled), outputs.detach(), scaler)
            return scaled

        return scale

    def _update(self, original: Any) -> Any:
        def update(scaler: GradScaler, *args: Any, **kwargs: Any) -> Any:
            original(scaler, *args, **kwargs)
            if self._hears and self._roots and self._scaler is scaler:
                self._forget()
                for listener in self._listeners:
                    skipped = listener()
                    if skipped is not None:
                        skipped()

        return update

    @property
    def _hears(self) -> bool:
        return self._listening and os.getpid() == self._pid

    def _hear(self, tensors: Any) -> None:
        if not self._hears:
            return
        root = tensors[0] if isinstance(tensors, tuple | list) and len(tensors) == 1 else tensors
        if not isinstance(root, Tensor) or root.numel() != 1 or not root.is_floating_point():
            return
        if self._scaled is not None and self._scaled[0]() is root:
            _, root, self._scaler = self._scaled
            self._scaled = None
        else:
            self._scaler = None
        if root.numel() == 1 and len(self._roots) < 10_000:
            self._roots.append(root.detach())

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._listening:
            self._spend(optimizer)

    def _spend(self, optimizer: Optimizer) -> None:
        if self._roots:
            self._spent, self._roots = self._roots, []
            self._spenders.clear()
        self._spenders.add(id(optimizer))

    def _forget(self) -> None:
        self._roots.clear()
        self._spent = []
        self._spenders.clear()
        self._scaled = self._scaler = None


TAP = LossTap()
"""The process's one tap."""
