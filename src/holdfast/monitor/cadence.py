"""`Cadence`: which optimiser steps are observed, and the account of what that cost."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from holdfast.core.errors import InputError
from holdfast.monitor.ranks import GAP, Ranks

Every = int | Literal["auto"]

# Steps observed while `"auto"` settles, whatever they cost: the start is when a network is most often wrong, and
# the price of one observation must be known before it can be kept under a budget.
SETTLING = frozenset({1, 2, 3, 5, 10, 20, 40, 70, 100, 150, 200})
SETTLED = max(SETTLING)

# Of these, the ones that also get the measures a user asked for beside the watch's own, which may cost many passes.
ASKING = frozenset({2, 20, 200})

# Steps in a row of which nothing is seen, at most: a loss that is not finite is noticed by then.
MOST_RESTED = 100

# Seconds that such a step is taken to cost all the same: three hooks are called that do next to nothing, where caches
# are cold. Measured from outside (`benchmarks/budget.py`), for a hook cannot time its own call.
PASSING = 5e-6

Cause = Literal["hooks", "measures", "probes", "hand_off"]

# Kinds of work with a cadence each.
_STATISTICS, _PROBES = 0, 1


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
    probed: int = 0
    rested: int = 0

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
        """The monitor's seconds over the bare steps'; NaN where so little ran that nothing of it was bare."""
        return self.spent / self.bare if self.bare > 0 else math.nan


@dataclass(slots=True)
class Purse:
    """What one kind of the monitor's work has cost since settling, and what it will cost next time.

    The price is a running maximum that forgets by halves, so that one cheap time does not let two dear ones through.
    What is written later, for many times at once, belongs to it by its mean.
    """

    spent: float = 0.0
    price: float = 0.0
    written: float = 0.0
    times: int = 0

    def pay(self, seconds: float, later: float = 0.0) -> None:
        """Tell what it cost this time.

        Args:
            seconds: of the work itself.
            later: of writing that fell due meanwhile.
        """
        self.spent += seconds + later
        self.price = max(seconds, 0.5 * (self.price + seconds))
        self.written += later
        self.times += 1

    def holds(self, limit: float) -> bool:
        """Whether once more keeps it under a limit in seconds."""
        return self.spent + self.next <= limit

    @property
    def next(self) -> float:
        """Seconds that it will cost next time, writing and all."""
        return self.price + self.written / max(1, self.times)


@dataclass(slots=True)
class Cadence:
    """Decides step by step what is done: nothing, statistics of every layer, or probes and measures beside them.

    With a number, every so many steps (and the first). With `"auto"`, a few steps while settling, and from then on
    whenever the work to come, at the price of the last times, keeps its share of the steps' time since settling
    under its part of the budget. The look at every step (its loss, its learning rate) may take a third: where it is
    dearer, steps pass unseen between the looks. The norm of all gradients may take a third of the rest; statistics,
    probes and the measures that were asked for share what is left then.

    Args:
        every: steps from one observation to the next, or `"auto"`.
        budget: the monitor's largest share of the bare steps' time, `"auto"` only.
        probe_every: the same for probes; by default at every step that is observed, with `every="auto"` as often as
            the budget allows.
        ranks: the other processes of a distributed run, which do the same at the same steps.
        asked: whether there are measures that a user asked for beside the watch's own.

    Raises:
        InputError: `every`, `probe_every` or `budget` is not usable.

    Example:
        >>> cadence = Cadence(every=3)
        >>> [step for step in range(1, 10) if cadence.wants(step)]
        [1, 3, 6, 9]
    """

    every: Every = "auto"
    budget: float = 0.01
    probe_every: Every | None = None
    ranks: Ranks | None = None
    asked: bool = False
    account: Account = field(default_factory=Account)
    _paid: float = 0.0  # of the training thread's work and of writing, what a purse has paid for
    _written: float = 0.0
    _ready: float = 0.0  # the training thread's work when the present step was ready to begin
    _settled: tuple[int, float] | None = None  # step and bare seconds
    _each: Purse = field(default_factory=Purse)
    _norms: Purse = field(default_factory=Purse)
    _statistics: Purse = field(default_factory=Purse)
    _probes: Purse = field(default_factory=Purse)
    _asked: Purse = field(default_factory=Purse)
    _passing: Purse = field(default_factory=Purse)
    _lasted: deque[float] = field(default_factory=lambda: deque(maxlen=15))  # bare, of steps looked at
    _steps: int = 0
    _looks: int = 0  # steps since settling that were looked at and not observed
    _woken: bool = False  # after a rest, a step is looked at first: what a bare step takes must stay known
    _alarm_until: int = 0
    _depth: int = 0
    _timers: dict[Cause, _Timer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("probe_every", self.probe_every)):
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if value != "auto" and not whole and (value is not None or name == "every"):
                wanted = f"{name}='auto' or a whole number of steps ≥ 1"
                raise InputError(wanted, repr(value), f"type: {name}='auto'")
        if not 0 < self.budget <= 1:
            raise InputError("a budget above 0 and at most 1", repr(self.budget), "type: budget=0.01 for one per cent")
        if self.probe_every is None and self.every == "auto":
            self.probe_every = "auto"

    def wants(self, step: int) -> bool:
        """Whether to observe a step, asked once, before it begins."""
        if self.ranks is not None:
            before = self.ranks.seconds
            self.ranks.meet(step, lambda: self._due(step))
            self.account.hooks += self.ranks.seconds - before
        if step == 1 or self._alarming(step) or self.probes(step, wanted=False):
            return True
        if self.every != "auto":
            return step % self.every == 0
        return not self._woken and self._affords(_STATISTICS, step)

    def probes(self, step: int, *, wanted: bool = True) -> bool:
        """Whether a step gets probes and measures too.

        Args:
            step: the step to come.
            wanted: whether the step is observed anyway.
        """
        if self.probe_every is None or step == 1 or self._alarming(step):
            return wanted
        if self.probe_every != "auto":
            return step % self.probe_every == 0
        if step <= SETTLED:
            return step in SETTLING
        return not self._woken and (self._affords(_PROBES, step) or self.asks(step))

    def asks(self, step: int) -> bool:
        """Whether a step that gets probes gets the measures too that a user asked for.

        Args:
            step: the step to come.
        """
        if not self.asked or self.ranks is not None:
            return False
        if self.probe_every != "auto":
            return True
        if step <= SETTLED:
            return step in ASKING
        return self._asked.holds(self._left(step) * self._part)

    def _affords(self, work: int, step: int) -> bool:
        """Whether the budget allows a kind of work, by this process's clock or, with several, as they agreed."""
        if self.ranks is not None and self.ranks.together:
            return self.ranks.due[work : work + 1] == (step,)
        return self._purse(work).holds(self._left(step) * self._part)

    @property
    def _part(self) -> float:
        """Of the budget, what one kind of work may take."""
        # Observed at a fixed cadence, statistics are what somebody wants at any cost: the budget is for the rest.
        return 1 / (1 + (self.every == "auto") + self.asked)

    @property
    def _purses(self) -> tuple[Purse, ...]:
        return self._each, self._norms, self._statistics, self._probes, self._asked, self._passing

    def _purse(self, work: int) -> Purse:
        return self._statistics if work == _STATISTICS else self._probes

    def _due(self, step: int) -> tuple[int, int]:
        """Of statistics and of probes, the step that the budget will allow them at, if all goes on as it did.

        0 where that follows from the step alone.
        """
        if step <= SETTLED:
            return 0, 0
        limit = self._left(step) * self._part
        since = step - self._settled[0] if self._settled else 0
        due = []
        for work, asked in ((_STATISTICS, self.every), (_PROBES, self.probe_every)):
            purse = self._purse(work)
            missing = purse.spent + purse.next - limit
            wait = 0 if missing <= 0 else math.ceil(missing / limit * since) if limit > 0 else GAP
            due.append(step + min(wait, GAP) if asked == "auto" else 0)
        return due[0], due[1]

    def _left(self, step: int) -> float:
        """Seconds that the budget allows since settling, less what was spent on looks, norms and steps unseen."""
        if step <= SETTLED:
            return -math.inf
        if self._settled is None:
            self._settled = step, self.account.bare
            for purse in self._purses:
                purse.spent = 0.0
        spent = self._each.spent + self._norms.spent + self._passing.spent
        return self.budget * (self.account.bare - self._settled[1]) - spent

    def alarm(self, step: int, window: int = 20) -> None:
        """Observe every step of a window: something happened. With several ranks, from their next meeting on."""
        self._alarm_until = max(self._alarm_until, step + window)
        if self.ranks is not None:
            self.ranks.alarm(window)

    def _alarming(self, step: int) -> bool:
        """Whether an alarm lets a step be observed; what is this rank's alone does not, while all decide as one."""
        if self.ranks is None or not self.ranks.together:
            return self.alarmed(step)
        return step <= self.ranks.alarm_until

    def alarmed(self, step: int) -> bool:
        """Whether a step lies in an alarm's window."""
        return step <= max(self._alarm_until, 0 if self.ranks is None else self.ranks.alarm_until)

    def takes_norm(self, step: int, *, observed: bool) -> bool:
        """Whether the norm of all gradients is taken, which reads as much memory as there are parameters.

        Args:
            step: the step just done.
            observed: whether it was.
        """
        if self.every != "auto" or observed or step <= SETTLED:
            return True
        return self._norms.holds((self._left(step) + self._norms.spent) / 3)

    def rest(self, step: int) -> int:
        """How many steps from this one on nothing at all is done, because even looking at each would be too dear.

        Args:
            step: the step to come, which is not observed.

        Returns:
            0 where looking takes less than a third of the budget; always 0 while settling, at a fixed cadence, in the
            window of an alarm, and where several ranks decide together.
        """
        ranked = self.ranks is not None and self.ranks.together
        if self.every != "auto" or step <= SETTLED or self._alarming(step) or ranked or self._woken or not self._looks:
            return 0
        dear = self._each.spent / self._looks
        allowed = self.budget / 3 * self._bare_step
        return min(MOST_RESTED, max(0, math.ceil(dear / allowed) - 1)) if allowed > 0 else 0

    def rested(self, steps: int, seconds: float) -> None:
        """Tell that steps passed unseen: each is taken to have lasted as long as those that were looked at.

        Args:
            steps: how many.
            seconds: from the first one's begin to the last one's end; more than they can have lasted.
        """
        # At most half of the budget: a network whose steps are so short would else not be observed at all.
        passing = steps * min(PASSING, self.budget / 2 * self._bare_step)
        self._passing.pay(passing)
        self._paid += passing
        self.account.hooks += passing
        self.account.run += min(steps * self._bare_step + passing, seconds)
        self.account.rested += steps
        self._steps += steps
        self._woken = True

    @property
    def _bare_step(self) -> float:
        """Seconds of a step without the monitor: the median of the last that were looked at."""
        return statistics.median(self._lasted) if self._lasted else 0.0

    @property
    def settled(self) -> float | None:
        """The monitor's seconds over the bare steps' since settling; `None` before, and at a fixed cadence."""
        if self.every != "auto" or self._settled is None or self.account.bare <= self._settled[1]:
            return None
        return sum(purse.spent for purse in self._purses) / (self.account.bare - self._settled[1])

    @property
    def roomy(self) -> bool:
        """Whether steps are so long (or so dear already) that tens of microseconds are nothing."""
        return self.every != "auto" or self._steps < SETTLED or self.account.run > 0.02 * self._steps

    def stepped(
        self, *, observed: bool, probed: bool, norm: float = 0.0, asked: float = 0.0, lasted: float | None = None
    ) -> None:
        """Tell that a step is over: what was spent since the last one is the price of what was done.

        Calling a hook costs beside what runs in it, and leaves caches cold: an observed step that lasted longer than
        those around it and its own booked work is booked in full.

        Args:
            observed: whether it was.
            probed: whether it had probes and measures.
            norm: seconds that the norm of all gradients took; 0 where it was not taken.
            asked: seconds of the measures that were asked for.
            lasted: seconds from the step's first forward to its end, where that is known.
        """
        if lasted is not None:
            self.account.run += lasted
            bare = lasted - (self._booked - self._ready)
            if not observed:
                self._lasted.append(bare)
            elif len(self._lasted) > 4:
                self.account.hooks += max(0.0, bare - self._bare_step)
        seconds, self._paid = self._booked - self._paid, self._booked
        later, self._written = self.account.writing - self._written, self.account.writing
        self._steps += 1
        self._woken = False
        self.account.observed += observed
        self.account.probed += probed
        if self._settled is not None and not observed:
            self._looks += 1
        if norm:
            self._norms.pay(norm)
        if asked:
            self._asked.pay(asked)
        (self._probes if probed else self._statistics if observed else self._each).pay(seconds - norm - asked, later)

    def ready(self, seconds: float) -> None:
        """Tell that all is prepared for the step to come.

        Args:
            seconds: that it took, as booked.
        """
        self.account.run += seconds
        self._ready = self._booked

    @property
    def _booked(self) -> float:
        """Seconds of the training thread: writing runs beside it."""
        return self.account.spent - self.account.writing

    def told(self, steps: int) -> tuple[str, dict[str, Any]]:
        """The account in a sentence, and its figures.

        Args:
            steps: of the run.
        """
        account, settled = self.account, self.settled
        asked = f"at most {self.budget:.1%} of the bare run" if self.every == "auto" else f"every {self.every} steps"
        since = "" if settled is None else f" ({_share(settled)} after step {SETTLED})"
        message = (
            f"observed {account.observed} of {steps} steps, {account.probed} of them with probes;"
            f" asked {asked}, took {_share(account.overhead)}{since}"
        )
        return message, {
            "every": self.every,
            "budget": self.budget,
            "overhead": None if math.isnan(account.overhead) else account.overhead,
            "settled": settled,
            "observed": account.observed,
            "probed": account.probed,
            "unseen": account.rested,
            "steps": steps,
            "seconds": {
                "run": account.run,
                "hooks": account.hooks,
                "measures": account.measures,
                "probes": account.probes,
                "hand-off": account.hand_off,
                "writing": account.writing,
            },
        }

    def timed(self, cause: Cause) -> _Timer:
        """Book the time of a block of the monitor's work; within another such block it belongs to that one."""
        timer = self._timers.get(cause)
        if timer is None:
            timer = self._timers[cause] = _Timer(self, cause)
        return timer


class _Timer:
    """A context manager that is used again and again: one made by a generator costs 20 µs where caches are cold."""

    __slots__ = ("_begin", "_cadence", "_cause")

    def __init__(self, cadence: Cadence, cause: Cause) -> None:
        self._cadence, self._cause, self._begin = cadence, cause, 0.0

    def __enter__(self) -> None:
        self._cadence._depth += 1
        if self._cadence._depth == 1:
            self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._cadence._depth -= 1
        if self._cadence._depth == 0:
            account = self._cadence.account
            setattr(account, self._cause, getattr(account, self._cause) + time.perf_counter() - self._begin)


def _share(overhead: float) -> str:
    return "more than the steps themselves" if math.isnan(overhead) else f"{overhead:.1%}"
