"""`Snapshot`: a model and its optimiser as they are, to be put back bit for bit, as often as wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError
from holdfast.core.interrupt import deferred


class Snapshot:
    """Parameters, buffers, gradients, modes, the optimiser's state and settings, kept by value.

    `restore` writes the values back into the very tensors and dictionaries that were there, so that a scheduler, a
    scaler or a hook that holds on to them goes on. It does not exchange modules back: undo a surgery first. Random
    generators are kept elsewhere (`RandomState`), and so is what a module keeps in plain Python attributes.

    Args:
        model: the model.
        optimizer: the one that steps it, or `None`.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> snapshot = Snapshot(layer, None)
        >>> before = layer.weight.item()
        >>> _ = nn.init.constant_(layer.weight, 7.0)
        >>> snapshot.restore()
        >>> layer.weight.item() == before
        True
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        self._modes = [(module, module.training) for module in model.modules()]
        self._parameters = [
            (parameter, parameter.detach().clone(), parameter.requires_grad, parameter.grad)
            for parameter in model.parameters()
        ]
        self._buffers = [
            (module, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
        ]
        self._optimizer = optimizer
        if optimizer is not None:
            self._settings = [
                (group, list(group["params"]), {key: _kept(value) for key, value in group.items() if key != "params"})
                for group in optimizer.param_groups
            ]
            self._state = [
                (key, state, {name: _kept(value) for name, value in state.items()})
                for key, state in optimizer.state.items()
            ]

    def values(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The kept values of some of the parameters, without putting them back.

        Args:
            parameters: of the model that was kept.

        Returns:
            One tensor each, not to be written to.

        Raises:
            InputError: one of them was not kept.
        """
        kept = {id(parameter): value for parameter, value, _, _ in self._parameters}
        if any(id(each) not in kept for each in parameters):
            raise InputError(
                "a snapshot of this model",
                "one of another, or of this one before its layers changed",
                "type: snapshot = Snapshot(model, optimizer)",
            )
        return [kept[id(each)] for each in parameters]

    def restore(self) -> None:
        """Put everything back; may be called again."""
        with deferred():
            with torch.no_grad():
                for parameter, value, trained, gradient in self._parameters:
                    parameter.copy_(value)
                    parameter.requires_grad_(trained)
                    parameter.grad = gradient
                for module, name, buffer, kept in self._buffers:
                    module._buffers[name] = buffer
                    if buffer is not None and kept is not None:
                        buffer.copy_(kept)
            for module, mode in self._modes:
                module.training = mode
            if self._optimizer is not None:
                self._restore_optimizer(self._optimizer)

    def _restore_optimizer(self, optimizer: Optimizer) -> None:
        for group, held, settings in self._settings:
            group["params"][:] = held
            for key in [key for key in group if key != "params" and key not in settings]:
                del group[key]
            group.update(_put_back(settings))
        optimizer.param_groups[:] = [group for group, _, _ in self._settings]
        optimizer.state.clear()
        for owner, state, kept in self._state:
            state.clear()
            state.update(_put_back(kept))
            optimizer.state[owner] = state


def _kept(value: Any) -> tuple[Any, Any]:
    """An object and its value at this moment."""
    return value, value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)


def _put_back(kept: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """The same tensors with the values that they had; fresh copies of everything else."""
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name, (thing, value) in kept.items():
            if isinstance(thing, Tensor):
                thing.copy_(value)
                found[name] = thing
            else:
                found[name] = deepcopy(value)
    return found
