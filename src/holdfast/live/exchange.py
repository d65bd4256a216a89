"""`exchanged`: a model's parameters hold other values for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from holdfast.core.interrupt import deferred, interruptible


@contextmanager
def exchanged(values: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Let parameters hold other values while the block runs; afterwards they hold theirs again, bit for bit.

    Written into the tensors that are there, so that whoever holds on to one (a recurrent layer's flat list, a
    parametrisation, a second name) sees the same; their version counters do not move, so that a graph made before may
    still be walked back afterwards.

    Args:
        values: `(parameter, value)`, each parameter once; the shapes are equal, type and device need not be.

    Yields:
        Nothing.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> with exchanged([(weight, torch.zeros(2))]):
        ...     weight.tolist()
        [0.0, 0.0]
        >>> weight.tolist(), weight._version
        ([1.0, 1.0], 0)
    """
    kept = [(parameter, parameter.detach().clone()) for parameter, _ in values]
    with deferred():
        try:
            _write(values)
            with interruptible():
                yield
        finally:
            _write(kept)


@torch.no_grad()
def _write(values: Sequence[tuple[Tensor, Tensor]]) -> None:
    for parameter, value in values:
        parameter.data.copy_(value)
