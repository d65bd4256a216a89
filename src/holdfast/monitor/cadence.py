"""`Cadence`: which optimiser steps are observed, and the account of what that cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from holdfast.core.errors import InputError

Every = int | Literal["auto"]

# Steps observed while `"auto"` settles, whatever they cost: the start is when a network is most often wrong, and
# the price of one observation must be known before it can be kept under a budget.
SETTLING = frozenset({1, 2, 3, 5, 10, 20, 40, 70, 100, 150, 200})
SETTLED = max(SETTLING)


@dataclass(slots=True)
class Account:
    """Seconds spent by the monitor, by cause, beside the seconds of the steps (from a step's first forward to its end).

    `writing` is processor time of the store's own thread: it runs beside training, but takes a core and the
    interpreter from it, and is counted in full.
    """

    hooks: float = 0.0
    measures: float = 0.0
    probes: float = 0.0
    hand_off: float = 0.0
    writing: float = 0.0
    run: float = 0.0
    observed: int = 0

    @property
    def spent(self) -> float:
        """Seconds spent by the monitor in all."""
        return self.hooks + self.measures + self.probes + self.hand_off + self.writing

    @property
    def bare(self) -> float:
        """Seconds that the steps would have taken without the monitor."""
        return self.run - (self.spent - self.writing)

    @property
    def overhead(self) -> float:
        """The monitor's seconds over the bare steps'."""
        return self.spent / self.bare if self.bare > 0 else 0.0


@dataclass(slots=True)
class Cadence:
    """Decides step by step whether to observe.

    With a number, every so many steps (and the first). With `"auto"`, a few steps while settling, and from then on
    whenever the observation to come, at the price of the last ones, keeps the monitor's share of the steps' time since
    settling under the budget.

    Args:
        every: a whole number of steps, or `"auto"`.
        budget: the monitor's largest share of the bare steps' time, `"auto"` only.

    Raises:
        InputError: `every` or `budget` is not usable.

    Example:
        >>> cadence = Cadence(every=3)
        >>> [step for step in range(1, 10) if cadence.wants(step)]
        [1, 3, 6, 9]
    """

    every: Every = "auto"
    budget: float = 0.01
    account: Account = field(default_factory=Account)
    _price: float = 0.0
    _spent_before: float = 0.0
    _settled_at: tuple[float, float] | None = None
    _alarm_until: int = 0
    _booking: bool = False

    def __post_init__(self) -> None:
        whole = isinstance(self.every, int) and not isinstance(self.every, bool) and self.every >= 1
        if self.every != "auto" and not whole:
            raise InputError("every='auto' or a whole number of steps ≥ 1", repr(self.every), "type: every='auto'")
        if not 0 < self.budget <= 1:
            raise InputError("a budget above 0 and at most 1", repr(self.budget), "type: budget=0.01 for one per cent")

    def wants(self, step: int) -> bool:
        """Whether to observe a step, asked once, before it begins."""
        if step <= self._alarm_until:
            return True
        if self.every != "auto":
            return step == 1 or step % self.every == 0
        if step <= SETTLED:
            return step in SETTLING
        if self._settled_at is None:
            self._settled_at = (self.account.bare, self.account.spent)
        bare, spent = self._settled_at
        return self.account.spent - spent + self._price <= self.budget * (self.account.bare - bare)

    def alarm(self, step: int, window: int = 20) -> None:
        """Observe every step of a window: something happened."""
        self._alarm_until = max(self._alarm_until, step + window)

    def alarmed(self, step: int) -> bool:
        """Whether a step lies in an alarm's window."""
        return step <= self._alarm_until

    def observed(self) -> None:
        """Tell that the observation of a step is over: what was spent since the last one is its price.

        The price kept is a running maximum that forgets by halves, so that one cheap observation does not let two
        dear ones through.
        """
        seconds, self._spent_before = self.account.spent - self._spent_before, self.account.spent
        self.account.observed += 1
        self._price = max(seconds, 0.5 * (self._price + seconds))

    @contextmanager
    def timed(self, cause: Literal["hooks", "measures", "probes", "hand_off"]) -> Iterator[None]:
        """Book the time of a block of the monitor's work; within another such block it belongs to that one."""
        if self._booking:
            yield
            return
        self._booking = True
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._booking = False
            setattr(self.account, cause, getattr(self.account, cause) + time.perf_counter() - begin)
