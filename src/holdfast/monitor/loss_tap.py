"""The loss of a step, taken from the root of `backward()`, so that no loop has to be changed."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class LossTap:
    """Listens to `torch.autograd.backward` while anybody watches.

    `Tensor.backward` goes through `torch.autograd.backward`, so one replaced function sees every root. The scalar
    roots since the last optimiser step belong to the next optimiser that steps: their sum is the function whose
    gradient that step follows (gradient accumulation, a discriminator's two losses).

    Install with `open`, take back with `close`; both count, so that several watches share one tap.
    """

    def __init__(self) -> None:
        self._users = 0
        self._roots: list[Tensor] = []
        self._original: Any = None
        self._wrapper: Any = None
        self._steps: Any = None
        self._pid = 0

    def open(self) -> None:
        """Start listening."""
        self._users += 1
        if self._users > 1:
            return
        self._pid = os.getpid()
        self._roots.clear()
        self._original = torch.autograd.backward
        original = self._original

        @functools.wraps(original)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            self._hear(tensors)
            return original(tensors, *args, **kwargs)

        self._wrapper = backward
        torch.autograd.backward = backward
        # Runs after the stepping optimiser's own hooks, and so after its watch has taken the loss.
        self._steps = register_optimizer_step_post_hook(self._forget)

    def close(self) -> None:
        """Stop listening; the last to close puts torch's function back."""
        self._users -= 1
        if self._users > 0:
            return
        # Somebody may have wrapped ours since: theirs stays, and ours within it hears nobody from now on.
        if torch.autograd.backward is self._wrapper:
            torch.autograd.backward = self._original
        self._steps.remove()
        self._roots.clear()

    def take(self, *, first: bool = False) -> float | None:
        """The loss since the last step, and forget it.

        Args:
            first: only the first root, for an optimiser that evaluates its closure several times a step.

        Returns:
            The sum of the roots, `None` when no scalar root was seen.
        """
        roots, self._roots = self._roots, []
        if not roots:
            return None
        return float(sum(float(root) for root in (roots[:1] if first else roots)))

    def _hear(self, tensors: Any) -> None:
        if self._users == 0 or os.getpid() != self._pid:
            return
        root = tensors[0] if isinstance(tensors, tuple | list) and len(tensors) == 1 else tensors
        if isinstance(root, Tensor) and root.numel() == 1 and root.is_floating_point() and len(self._roots) < 10_000:
            self._roots.append(root.detach())

    def _forget(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._roots.clear()


TAP = LossTap()
"""The process's one tap."""
