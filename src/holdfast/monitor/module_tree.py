"""`ModuleTree`: whether layers were added, replaced, frozen or unfrozen since one last looked."""

from __future__ import annotations

from operator import is_

from torch import nn
from torch.optim import Optimizer


class ModuleTree:
    """What a model consists of and what its optimiser steps, as last looked at.

    Torch counts no versions of a module's children, so they are compared by identity: a few microseconds for twenty
    modules.

    Args:
        model: the model watched.
        optimizer: its optimiser.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> tree = ModuleTree(net, torch.optim.SGD(net.parameters()))
        >>> before = tree.changed()
        >>> net[0] = nn.Linear(2, 2)
        >>> before, tree.changed(), tree.changed()
        (False, True, False)
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._seen: list[object] = []
        self.changed()

    def changed(self) -> bool:
        """Whether anything changed since the last call."""
        now: list[object] = [self._model]
        for module in now:  # grows while it is walked
            now.extend(child for child in module._modules.values() if child is not None)  # type: ignore[attr-defined]
            if len(now) > MODULES:
                break
        for group in self._optimizer.param_groups:
            now += group["params"]
            now += [parameter.requires_grad for parameter in group["params"]]
        changed = len(now) != len(self._seen) or not all(map(is_, now, self._seen))
        self._seen = now
        return changed


MODULES = 100_000
"""More than any model has: one that contains itself has no end."""
