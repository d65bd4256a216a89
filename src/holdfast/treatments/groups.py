"""The groups of an optimiser found again, and the schedulers that one scheduler is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from holdfast.core.errors import SurgeryError


def place_of(optimizer: Optimizer, params: list[Tensor]) -> int:
    """Where the group with a list of parameters is now.

    `load_state_dict` exchanges the dictionaries of the groups and keeps their lists: who holds on to a dictionary
    writes where nobody reads.

    Args:
        optimizer: the optimiser.
        params: the very list, not an equal one.

    Returns:
        The index of the group.

    Raises:
        SurgeryError: no group has that list any more.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> held = optimizer.param_groups[0]
        >>> optimizer.load_state_dict(optimizer.state_dict())
        >>> optimizer.param_groups[0] is held, place_of(optimizer, held["params"])
        (False, 0)
    """
    for place, group in enumerate(optimizer.param_groups):
        if group["params"] is params:
            return place
    raise SurgeryError(
        "the optimiser's groups as the treatment left them",
        "groups that were exchanged for others since",
        "undo the later change first, or build the optimiser again",
    )


def group_of(optimizer: Optimizer, params: list[Tensor]) -> dict[str, Any]:
    """The group that `place_of` finds.

    Args:
        optimizer: see `place_of`.
        params: see `place_of`.

    Returns:
        Its dictionary as it is now.

    Raises:
        SurgeryError: see `place_of`.
    """
    group: dict[str, Any] = optimizer.param_groups[place_of(optimizer, params)]
    return group


def schedulers(scheduler: LRScheduler | None, path: str = "scheduler") -> Iterator[tuple[str, LRScheduler]]:
    """A scheduler and those that it chains, each with the expression that leads to it.

    Args:
        scheduler: any, or `None`.
        path: the expression for the first.

    Yields:
        `(expression, scheduler)`.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
        >>> chain = torch.optim.lr_scheduler.ChainedScheduler([torch.optim.lr_scheduler.StepLR(optimizer, 3)])
        >>> [path for path, _ in schedulers(chain)]
        ['scheduler', 'scheduler._schedulers[0]']
    """
    if scheduler is None:
        return
    yield path, scheduler
    for place, each in enumerate(getattr(scheduler, "_schedulers", ())):
        yield from schedulers(each, f"{path}._schedulers[{place}]")
