"""Readings of parameters, their gradients and their updates at an optimiser step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.core.reading import Reading
from holdfast.core.site import Port, Site
from holdfast.live.ranks import copies, is_sharded, local
from holdfast.measures.gradient_norm import gradient_norm
from holdfast.measures.update_ratio import update_ratio
from holdfast.measures.weight_norm import weight_norm


class Parameters:
    """The parameters of a model that an optimiser steps, each once, under its first name.

    Args:
        model: the model watched.
        optimizer: its optimiser.
        stream: name of the model.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, stream: str) -> None:
        self._model = model
        self._optimizer = optimizer
        self._stream = stream
        self._before: list[Tensor] = []
        self._sites: dict[str, dict[Port, Site]] = {}
        self.scan()

    def scan(self) -> None:
        """Look again which parameters there are: layers are unfrozen and replaced while training goes on."""
        stepped = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        self._named = [
            (name, parameter)
            for name, parameter in self._model.named_parameters()
            if id(parameter) in stepped and parameter.is_floating_point()
        ]
        self._sharded = any(is_sharded(parameter) for _, parameter in self._named)

    def __len__(self) -> int:
        return len(self._named)

    def hold(self) -> None:
        """Keep the weights as they are before the step."""
        self.scan()
        self._before = [local(parameter).detach().clone() for _, parameter in self._named]

    def global_gradient_norm(self) -> float | None:
        """L2 norm of the gradients of all parameters that the optimiser steps; `None` when there is none.

        With sharded parameters this rank's part of it: squares of the parts add up over the ranks.
        """
        stepped = [
            each
            for group in self._optimizer.param_groups
            for each in group["params"]
            if each.grad is not None and not each.grad.is_sparse
        ]
        if not stepped:
            return None
        if not self._sharded:  # `torch.nn.utils.get_total_norm` takes half as long again
            return math.sqrt(sum(norm**2 for norm in _norms([each.grad for each in stepped])))
        norms = _norms([local(each.grad) for each in stepped])
        return math.sqrt(sum(norm**2 / copies(each) for norm, each in zip(norms, stepped, strict=True)))

    def nonfinite_gradients(self) -> list[str]:
        """Names of the parameters whose gradient is not finite."""
        return [
            name
            for name, parameter in self._named
            if parameter.grad is not None and not bool(torch.isfinite(local(parameter.grad)).all())
        ]

    def readings(self, step: int) -> list[Reading]:
        """Gradient norm, weight norm and update ratio of each parameter, after the step.

        Args:
            step: the step just done; `hold` was called before it.

        Returns:
            Three readings a parameter (no gradient norm where there is no gradient).
        """
        if len(self._before) != len(self._named):
            return []
        now = [local(parameter).detach() for _, parameter in self._named]
        # A tensor kept from before the step becomes the update; nothing else is copied.
        updates = self._before
        torch._foreach_neg_(updates)
        torch._foreach_add_(updates, now)
        self._before = []
        with_gradient = [
            (place, local(parameter.grad))
            for place, (_, parameter) in enumerate(self._named)
            if parameter.grad is not None and not parameter.grad.is_sparse
        ]
        gradient_norms = dict(
            zip((place for place, _ in with_gradient), _norms([each for _, each in with_gradient]), strict=True)
        )
        readings: list[Reading] = []
        for place, ((name, _), weight, change) in enumerate(
            zip(self._named, _norms(now), _norms(updates), strict=True)
        ):
            sites, n = self._sites_of(name), now[place].numel()
            if place in gradient_norms:
                readings.append(gradient_norm(gradient_norms[place], site=sites["weight_grad"], step=step, n=n))
            readings.append(weight_norm(weight, site=sites["weight"], step=step, n=n))
            readings.append(update_ratio(change, weight, site=sites["update"], step=step, n=n))
        return readings

    def _sites_of(self, name: str) -> dict[Port, Site]:
        found = self._sites.get(name)
        if found is None:
            module, _, leaf = name.rpartition(".")
            ports: tuple[Port, ...] = ("weight", "weight_grad", "update")
            found = self._sites[name] = {port: Site(module, port, self._stream, leaf) for port in ports}
        return found


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """L2 norm of each, one transfer for all."""
    if not tensors:
        return []
    device = tensors[0].device  # a model may lie on several
    return torch.stack([norm.to(device, torch.float32) for norm in torch._foreach_norm(list(tensors))]).tolist()
