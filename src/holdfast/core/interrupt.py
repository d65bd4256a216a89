"""Ctrl-C kept waiting while a model or an optimiser is between two states."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class _Waiting:
    """A handler of SIGINT that notes the signal for the handler before it."""

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self.handler = handler
        self._came: tuple[int, FrameType | None] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._came = (number, frame)

    def deliver(self) -> None:
        """Hand on what came."""
        came, self._came = self._came, None
        if came is not None:
            self.handler(*came)


@contextmanager
def deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done.

    Only the main thread is ever interrupted, so elsewhere this does nothing; nor does it within another such block.

    Yields:
        Nothing.

    Raises:
        KeyboardInterrupt: afterwards, if Ctrl-C came meanwhile (or what the handler that was set before does).

    Example:
        >>> try:
        ...     with deferred():
        ...         signal.raise_signal(signal.SIGINT)
        ...         done = True
        ... except KeyboardInterrupt:
        ...     done
        True
    """
    handler = _handler()
    if not callable(handler) or isinstance(handler, _Waiting):
        yield
        return
    waiting = _Waiting(handler)
    try:
        signal.signal(signal.SIGINT, waiting)
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        waiting.deliver()


@contextmanager
def interruptible() -> Iterator[None]:
    """Within `deferred`: a part that Ctrl-C may stop, such as a run of the model.

    Yields:
        Nothing.

    Raises:
        KeyboardInterrupt: in the block, or before it if Ctrl-C has waited already.
    """
    waiting = _handler()
    if not isinstance(waiting, _Waiting):
        yield
        return
    try:
        signal.signal(signal.SIGINT, waiting.handler)
        waiting.deliver()
        yield
    finally:
        signal.signal(signal.SIGINT, waiting)


def _handler() -> object:
    """The present handler of SIGINT; `None` in a thread that may not set another."""
    return signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
