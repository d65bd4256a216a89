"""`RandomState`: every global random generator, kept and put back."""

from __future__ import annotations

import random as python_random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RandomState:
    """The state of the global random generators at one moment.

    Torch's CPU generator always (1 µs), its CUDA generators where CUDA is in use, Python's `random` (10 µs) and NumPy's
    legacy global generator (60 µs) where asked for. Generators that somebody made for himself (`torch.Generator`,
    `np.random.default_rng`) are not among them.

    Args:
        torch_cpu: state of torch's CPU generator.
        torch_cuda: one state a device; empty where CUDA is not in use.
        python: `random.getstate()`, or `None` when not kept.
        numpy: `np.random.get_state()`, or `None` when not kept.

    Example:
        >>> state = RandomState.capture()
        >>> first = torch.rand(1), python_random.random()
        >>> state.restore()
        >>> first == (torch.rand(1), python_random.random())
        True
    """

    torch_cpu: Tensor
    torch_cuda: tuple[Tensor, ...] = ()
    python: tuple[Any, ...] | None = None
    numpy: Any = None

    @classmethod
    def capture(cls, python: bool = True, numpy: bool = True) -> RandomState:
        """Keep the present state.

        Args:
            python: keep that of Python's `random` too.
            numpy: keep that of NumPy's global generator too, if `numpy.random` was imported.

        Returns:
            The state, independent of what the generators do next.
        """
        module = _numpy_random() if numpy else None
        cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return cls(
            torch_cpu=torch.get_rng_state(),
            torch_cuda=tuple(torch.cuda.get_rng_state_all()) if cuda else (),
            python=python_random.getstate() if python else None,
            numpy=None if module is None else module.get_state(),
        )

    def restore(self) -> None:
        """Put all generators that were kept back to where they were; may be called again."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda:
            torch.cuda.set_rng_state_all(self.torch_cuda)
        if self.python is not None:
            python_random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy.random"].set_state(self.numpy)


@contextmanager
def preserved_random_state() -> Iterator[RandomState]:
    """Leave every global generator after the block as it was before, also when the block raises.

    Yields:
        The state that will be restored.

    Example:
        >>> with preserved_random_state() as state:
        ...     first = torch.rand(1)
        >>> first == torch.rand(1)
        tensor([True])
    """
    state = RandomState.capture()
    try:
        yield state
    finally:
        state.restore()


def generator_restorer(value: object) -> Callable[[], None] | None:
    """What puts a generator that somebody made for himself back to where it stands now.

    Args:
        value: anything, such as an attribute of a module.

    Returns:
        A function without arguments; `None` when the value is no generator of torch, Python or NumPy.

    Example:
        >>> mine = torch.Generator()
        >>> restore = generator_restorer(mine)
        >>> first = torch.rand(1, generator=mine)
        >>> _ = restore()
        >>> first == torch.rand(1, generator=mine)
        tensor([True])
    """
    if isinstance(value, torch.Generator):
        # set_state returns the generator
        return partial(value.set_state, value.get_state())  # type: ignore[return-value]
    if isinstance(value, python_random.Random):
        return partial(value.setstate, value.getstate())
    module = _numpy_random()
    if module is not None and isinstance(value, module.RandomState):
        return partial(value.set_state, value.get_state())
    if module is not None and isinstance(value, module.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    return None


def _numpy_random() -> Any:
    """`numpy.random` where it was imported; not while another thread, such as our compiler's, is at it."""
    module = sys.modules.get("numpy.random")
    whole = all(hasattr(module, name) for name in ("RandomState", "Generator", "get_state", "set_state"))
    return module if whole else None
