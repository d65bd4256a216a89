"""Where a proof's batches come from: the same ones in the same order for every arm of a seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

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
        InputError: an iterator, which no second arm could read again; a function that takes no seed; or nothing that
            gives batches.
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
    why = _why_not_called(batches, 0) if callable(batches) else ""
    if why:
        raise InputError(
            f"{name}: a function of the seed",
            f"one that cannot be called with a seed: {why}",
            f"type: {name}=lambda seed: mine()",
        )


def check_loss(loss_fn: Any) -> None:
    """Refuse a loss that cannot be called with output and targets alone.

    Args:
        loss_fn: as given.

    Raises:
        InputError: it needs other arguments, or cannot be called.
    """
    why = _why_not_called(loss_fn, None, None)
    if why:
        raise InputError(
            "a loss_fn(output, targets)",
            f"one that cannot be called so: {why}",
            "pack what else it needs into the targets: batches of (inputs, (targets, weights)) and "
            "loss_fn=lambda output, packed: mine(output, *packed)",
        )


def check_metric(metric: Any) -> None:
    """Refuse a metric that cannot be called with output and targets.

    Args:
        metric: as given; `None` for none.

    Raises:
        InputError: it needs other arguments, or cannot be called.
    """
    why = "" if metric is None else _why_not_called(metric, None, None)
    if why:
        raise InputError(
            "a metric(output, targets)",
            f"one that cannot be called so: {why}",
            "type: metric=lambda output, targets: (output.argmax(1) == targets).double().mean()",
        )


def _why_not_called(function: Any, *arguments: object) -> str:
    """Why a function does not take so many arguments, `""` when it does or does not tell."""
    if not callable(function):
        return f"it is a {type(function).__name__}"
    try:
        inspect.signature(function.forward if isinstance(function, nn.Module) else function).bind(*arguments)
    except TypeError as error:
        return str(error)
    except ValueError:  # a builtin without a signature: the first call will tell
        pass
    return ""


def draw(batches: Batches, count: int, seed: int) -> list[Batch]:
    """The batches of one seed.

    A list is dealt out in an order drawn from the seed, anew in every epoch; a loader is iterated (and shuffles by
    the global generators, which the caller has seeded, or by its own, which is put back); a function is called with
    the seed.

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
    epoch = 0
    while len(found) < count:
        before = len(found)
        for batch in _epoch(batches, seed, generator, epoch):
            found.append(_checked(batch, "batches"))
            if len(found) == count:
                break
        if not found:
            raise InputError("batches with at least one batch", "none", "type: batches=loader")
        if len(found) == before or (callable(batches) and len(found) < count):
            again = "" if callable(batches) else ", and none when they are read again"
            raise InputError(
                f"at least {count} batches", f"{len(found)}{again}", f"let it go on, or type: steps={len(found)}"
            )
        epoch += 1
    return found


def checked_pair(batch: Any, expected: str, fix: str) -> Batch:
    """A batch that is a pair.

    Args:
        batch: as it came.
        expected: what it should be.
        fix: what to type.

    Returns:
        The same.

    Raises:
        InputError: it is not one.
    """
    if isinstance(batch, Tensor | Mapping | str) or not isinstance(batch, Sequence) or len(batch) != 2:
        raise InputError(
            expected, f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, Sequence) else ""), fix
        )
    return batch


def _checked(batch: Any, name: str) -> Batch:
    return checked_pair(batch, f"{name} of (inputs, targets)", f"give pairs: {name}=[(inputs, targets), …]")


def in_an_order_of_its_own(drawn: list[Batch], first: list[Batch], seed: int) -> list[Batch]:
    """The batches of a seed; where they are those of the first seed in the same order, in an order drawn from the seed.

    A loader that does not shuffle and a function that ignores its seed would else repeat one training.

    Args:
        drawn: of the seed.
        first: of the first seed.
        seed: of the order.

    Returns:
        The same batches.
    """
    if not all(_same(*pair) for pair in zip(drawn, first, strict=True)):
        return drawn
    generator = torch.Generator().manual_seed(seed)
    return [drawn[int(place)] for place in torch.randperm(len(drawn), generator=generator)]


def _same(one: Batch, other: Batch) -> bool:
    (ones, shape), (others, other_shape) = tree_flatten(one), tree_flatten(other)
    if shape != other_shape:
        return False
    for a, b in zip(ones, others, strict=True):
        tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
        if a is not b and not (torch.equal(a, b) if tensors else type(a) is type(b) and bool(a == b)):
            return False
    return True


def _epoch(batches: Batches, seed: int, generator: torch.Generator, epoch: int) -> Iterable[Batch]:
    if callable(batches):
        yield from batches(seed)
    elif isinstance(batches, Sequence):
        yield from (batches[int(place)] for place in torch.randperm(len(batches), generator=generator))
    else:
        with _own_generators_seeded(batches, seed + 1_000_003 * epoch):
            yield from batches


@contextmanager
def _own_generators_seeded(loader: Any, seed: int) -> Iterator[None]:
    """Seed the generators that a loader and its sampler hold themselves, and put them back."""
    held = [getattr(each, "generator", None) for each in (loader, getattr(loader, "sampler", None))]
    generators = {id(each): each for each in held if isinstance(each, torch.Generator)}.values()
    states = [each.get_state() for each in generators]
    try:
        for each in generators:
            each.manual_seed(seed)
        yield
    finally:
        for each, state in zip(generators, states, strict=True):
            each.set_state(state)


def once(batches: Batches, name: str = "eval_batches") -> list[Batch]:
    """Every batch once, in its own order.

    Args:
        batches: see `Batches`.
        name: of the argument.

    Returns:
        At least one.

    Raises:
        InputError: there is none, or one is not a pair.
    """
    check_batches(batches, name)
    given = batches(0) if callable(batches) else batches
    if isinstance(given, Tensor):
        _checked(given, name)
    found = [_checked(batch, name) for batch in given]
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
