"""Where a proof's batches come from: the same ones in the same order for every arm of a seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.core.errors import InputError

Batch = Any
"""A pair `(inputs, targets)`; inputs as the model takes them: one tensor, a tuple of positional or a dictionary of
keyword arguments."""

Batches = Any
"""A list of batches, a loader that can be iterated again, or a function of the seed that gives batches; checked by
`check_batches`, which tells a user more than a type error would."""

LossFn = Callable[[Any, Any], Tensor]


def check_batches(batches: Batches, name: str = "batches") -> None:
    """Refuse what can be read once only.

    Args:
        batches: as given.
        name: of the argument.

    Raises:
        InputError: an iterator, which no second arm could read again; or nothing that gives batches.
    """
    if isinstance(batches, Iterator):
        raise InputError(
            f"{name} that can be read once for every arm",
            f"a {type(batches).__name__}, which is used up by the first",
            f"give the loader itself, a list, or a function of the seed: {name}=lambda seed: my_generator(seed)",
        )
    if not callable(batches) and not isinstance(batches, Iterable):
        raise InputError(
            f"{name}: a loader, a list of (inputs, targets), or a function of the seed",
            f"a {type(batches).__name__}",
            f"type: {name}=loader",
        )


def check_loss(loss_fn: LossFn) -> None:
    """Refuse a loss that cannot be called with output and targets alone.

    Args:
        loss_fn: as given.

    Raises:
        InputError: it needs other arguments.
    """
    try:
        inspect.signature(loss_fn).bind(None, None)
    except TypeError as error:
        raise InputError(
            "a loss_fn(output, targets)",
            f"one that cannot be called so: {error}",
            "pack what else it needs into the targets: batches of (inputs, (targets, weights)) and "
            "loss_fn=lambda output, packed: mine(output, *packed)",
        ) from error
    except ValueError:  # a builtin without a signature: the first call will tell
        return


def draw(batches: Batches, count: int, seed: int) -> list[Batch]:
    """The batches of one seed.

    A list is dealt out in an order drawn from the seed, anew in every epoch; a loader is iterated (and shuffles by
    the global generators, which the caller has seeded); a function is called with the seed.

    Args:
        batches: see `Batches`.
        count: how many.
        seed: of the order.

    Returns:
        That many; held in memory, so that every arm sees the very same.

    Raises:
        InputError: they run out, or one is not a pair.
    """
    found: list[Batch] = []
    generator = torch.Generator().manual_seed(seed)
    while len(found) < count:
        before = len(found)
        for batch in _epoch(batches, seed, generator):
            if isinstance(batch, Tensor | Mapping | str) or not isinstance(batch, Sequence) or len(batch) != 2:
                raise InputError(
                    "batches of (inputs, targets)",
                    f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, Sequence) else ""),
                    "give pairs: batches=[(inputs, targets), …]",
                )
            found.append(batch)
            if len(found) == count:
                break
        if len(found) == before or (callable(batches) and len(found) < count):
            raise InputError(
                f"at least {count} batches",
                f"{len(found)}",
                f"let it go on, or type: steps={max(1, len(found))}",
            )
    return found


def _epoch(batches: Batches, seed: int, generator: torch.Generator) -> Iterable[Batch]:
    if callable(batches):
        return batches(seed)
    if isinstance(batches, Sequence):
        return [batches[int(place)] for place in torch.randperm(len(batches), generator=generator)]
    return batches


def once(batches: Batches, name: str = "eval_batches") -> list[Batch]:
    """Every batch once, in its own order.

    Args:
        batches: see `Batches`.
        name: of the argument.

    Returns:
        At least one.

    Raises:
        InputError: there is none.
    """
    check_batches(batches, name)
    found = list(batches(0) if callable(batches) else batches)
    if not found:
        raise InputError(f"{name} with at least one batch", "none", f"type: {name}=held_out")
    return found


def size_of(batch: Batch) -> int:
    """Samples of a batch: the length of its first tensor; 1 where there is none."""
    for part in batch:
        for each in part.values() if isinstance(part, Mapping) else part if isinstance(part, tuple | list) else (part,):
            if isinstance(each, Tensor) and each.ndim:
                return len(each)
    return 1
