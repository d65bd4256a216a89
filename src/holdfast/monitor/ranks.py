"""`Ranks`: what the processes of a distributed run agree on, at steps that all of them know beforehand."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from holdfast.core.site import Port
from holdfast.live.ranks import averaged_over, distributed, store, talks, this_rank, world_size

GAP = 64
"""The most steps between two meetings: an alarm on one rank is heard by the others after so many at the latest."""

PATIENCE = timedelta(seconds=120)
"""How long a rank waits for the others before it goes on alone."""

Scales = Mapping[tuple[str, Port, str], int]

_NUMBERS = 6  # in a message, which has the same size whatever it is about
_MEETING, _READY = 0, 1


class Ranks:
    """One rank's view of the others: when all observe, and when all replay.

    A replay of a forward pass that gathers shards or joins statistics hangs unless every rank runs it, so no rank may
    decide alone. Decisions that follow from the step alone need no word. The others are made at meetings: one
    `all_reduce` of a few numbers on a gloo group of our own, before steps that all ranks know from the last meeting,
    right after an optimiser step, where training has just synchronised them. There the latest wish of all becomes the
    next observed step (every rank's budget holds), and an alarm on one becomes everybody's.

    Whether all ranks are watched at all is asked without waiting: each leaves a note in the process group's store when
    it starts, and looks for the others' after the first step, whose gradients cannot have been averaged before every
    rank had started. The first to look decides for all. Until then nothing is replayed that talks to other ranks.

    Each message carries the place where it was sent. When the places differ (a part of the monitor failed on one
    rank), when a rank is gone or the group destroyed, every rank notices, and goes on alone: observing by its own clock
    and without replays that talk.

    Args:
        model: as it is called in training, in its wrappers.
        key: names the watch; the same on all ranks.
        options: must be the same on all ranks.
        scales: of the sketches, by module, port and leaf; other ranks take over those of rank 0 after the first
            step, so that sketches of all ranks merge.
        rescale: takes them over.

    Attributes:
        talks: whether a replay of the model needs all ranks.
        averaged: what the ranks' summed gradients are divided by.
        due: the next steps at which something is done, one for each thing that hangs on the clocks; 0 for one that does
            not.
        alarm_until: the last step of the window of an alarm that was agreed on.
        seconds: what the meetings have taken, without waiting for slower ranks.
        told: sentences for the run, to be taken by the watch.
    """

    def __init__(
        self, model: nn.Module, *, key: str, options: str, scales: Scales, rescale: Callable[[Scales], None]
    ) -> None:
        self.rank, self.world = this_rank(), world_size()
        self.talks, self.averaged = talks(model), averaged_over(model)
        self.due: tuple[int, ...] = ()
        self.alarm_until = 0
        self.seconds = 0.0
        self.told: list[str] = []
        self._scales, self._rescale = scales, rescale
        self._shared = 0
        self._alarm = 0
        self._next = 2
        self._lasted = 0.0
        self._group: Any = None
        self._state: Literal["waiting", "together", "alone"] = "waiting" if self.world > 1 else "alone"
        self._note: _Note | None = None
        if self._state == "waiting":
            try:
                self._note = _Note(key, self.rank, options)
            except Exception as error:  # no process group yet, or a store that is gone
                self.leave(f"no process group was made before the watch ({_first_line(error)})")

    @property
    def together(self) -> bool:
        """Whether all ranks decide as one."""
        return self._state == "together"

    def meet(self, step: int, due: Callable[[], Sequence[int]]) -> None:
        """Be there before a step; costs nothing unless it is a step of a meeting.

        Args:
            step: the step to come; asked once for each, by every rank.
            due: of each thing to be decided (at most three), the first step from this one on at which this rank wishes
                to do it; 0 where that follows from the step alone. Asked at meetings only.
        """
        if self._state == "alone" or step < self._next:
            return
        if self._state == "waiting":
            self._join()
        if self.together:
            scales = len(self._scales) if self.rank == 0 else 0
            wishes = [float(each) for each in due()]
            found = self._exchange(4 * step + _MEETING, float(self._alarm), float(scales), -self._lasted, *wishes)
            if found is not None:
                self._agreed(step, found[:3], found[3 : 3 + len(wishes)])
        if self._alarm and not self.together:
            self._sound(step, self._alarm)

    def alarm(self, window: int) -> None:
        """Let every rank observe each step of a window, from the next meeting on.

        Args:
            window: in steps.
        """
        self._alarm = max(self._alarm, window)

    def ready(self, step: int, *flags: bool) -> tuple[bool, ...]:
        """Which replays all ranks are ready for; asked by every rank at the same place of an observed step.

        Args:
            step: the step just done.
            flags: whether this rank is, of each.

        Returns:
            Of each; as given where a replay talks to nobody.
        """
        if not self.talks:
            return flags
        found = self._exchange(4 * step + _READY, *(float(not flag) for flag in flags)) if self.together else None
        return tuple(found is not None and not found[place] for place in range(len(flags)))

    def close(self) -> None:
        """Leave for good; the others go on alone. A second call does nothing."""
        self._part()
        if self._note is not None:
            self._note.close()
            self._note = None

    def leave(self, reason: str) -> None:
        """Go on alone. The others notice at once, also where they wait for this rank's word.

        Args:
            reason: for the run.
        """
        if self._state == "alone":
            return
        self._part()
        effect = ", without probes because its model's forward talks to the other ranks" if self.talks else ""
        self.told.append(f"rank {self.rank} observes by itself{effect}: {reason}")

    def _part(self) -> None:
        self._state = "alone"
        group, self._group = self._group, None
        if group is not None and distributed():
            with contextlib.suppress(Exception):  # the user may have destroyed all groups
                dist.destroy_process_group(group)

    # What happens at a meeting

    def _agreed(self, step: int, figures: list[float], due: list[float]) -> None:
        alarm, scales, lasted = figures
        if alarm:
            self._sound(step, int(alarm))
        self.due = tuple(map(int, due))
        self._next = min([each + 1 for each in self.due if each] + [step + GAP])
        self.seconds -= lasted  # the last meeting's, by the rank that came last and waited for nobody
        if scales > self._shared:
            self._shared = int(scales)
            self._share()

    def _sound(self, step: int, window: int) -> None:
        self.alarm_until, self._alarm = step - 1 + window, 0

    def _exchange(self, place: int, *numbers: float) -> list[float] | None:
        """The greatest of each number over all ranks; `None` when the ranks did not meet."""
        begin = time.perf_counter()
        row = torch.tensor(
            [place, -place, *numbers, *[0.0] * (_NUMBERS - len(numbers))], dtype=torch.float64, device="cpu"
        )
        try:
            dist.all_reduce(row, op=dist.ReduceOp.MAX, group=self._group)
        except Exception as error:
            self.leave(f"the other ranks cannot be reached any more ({type(error).__name__})")
            return None
        self._lasted = time.perf_counter() - begin
        highest, lowest, *found = row.tolist()
        if (highest, -lowest) != (place, place):
            self.leave("the ranks were not at the same place of the loop, or a part of the monitor failed on one")
            return None
        return found

    def _share(self) -> None:
        """Take over the scales of rank 0."""
        text = json.dumps([[*place, scale] for place, scale in self._scales.items()]) if self.rank == 0 else ""
        payload = torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")
        size = torch.tensor([len(payload)], device="cpu")
        try:
            dist.broadcast(size, src=0, group=self._group)
            payload = payload if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8, device="cpu")
            dist.broadcast(payload, src=0, group=self._group)
        except Exception as error:
            self.leave(f"the other ranks cannot be reached any more ({type(error).__name__})")
            return
        if self.rank:
            found = json.loads(bytes(payload.tolist()))
            self._rescale({(module, port, leaf): scale for module, port, leaf, scale in found})

    # How they come together, and part

    def _join(self) -> None:
        try:
            verdict = self._note.verdict(self.world) if self._note is not None else ""
            if verdict == _TOGETHER:
                self._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        except Exception as error:
            verdict = f"the ranks could not meet ({_first_line(error)})"
        if verdict == _TOGETHER:
            self._state = "together"
        else:
            self.leave(verdict)


class _Note:
    """What a rank that watches leaves for the others in the process group's store, while it may still join them."""

    def __init__(self, key: str, rank: int, options: str) -> None:
        taken = _TAKEN.setdefault(key, set())
        self._place = next(place for place in range(len(taken) + 1) if place not in taken)
        taken.add(self._place)
        self._key, self._rank = key, rank
        # The number tells this watch from an earlier one at the same place.
        store().set(self._at(rank), json.dumps([next(_NUMBERS_OF_WATCHES), options]))

    def _at(self, rank: int) -> str:
        return f"holdfast/watch/{self._key}/{self._place}/{rank}"

    def close(self) -> None:
        """Make room for another watch of the same key."""
        self.withdraw()
        _TAKEN[self._key].discard(self._place)

    def withdraw(self) -> None:
        """Tell that this rank is not to be waited for."""
        with contextlib.suppress(Exception):  # the store may be gone
            store().set(self._at(self._rank), _GONE)

    def verdict(self, world: int) -> str:
        """`"together"`, or why not; what the first rank to ask found, for all of them."""
        notes = store()
        found = [
            notes.get(self._at(rank)).decode() if notes.check([self._at(rank)]) else _GONE for rank in range(world)
        ]
        present = [rank for rank, note in enumerate(found) if note != _GONE]
        mine = _TOGETHER
        if len(present) < world:
            mine = f"only {_ranks(present)} of {world} watched from the first step on"
        elif len({json.loads(note)[1] for note in found}) > 1:
            mine = "the ranks watch with different options (every, probe)"
        if 0 not in present:
            self.withdraw()  # it comes too late, should it come
            return mine
        case = f"{self._at(0)}/{json.loads(found[0])[0]}"
        if notes.add(f"{case}/asked", 1) == 1:
            notes.set(f"{case}/verdict", mine)
        notes.wait([f"{case}/verdict"], PATIENCE)
        return notes.get(f"{case}/verdict").decode()


_TOGETHER, _GONE = "together", "gone"
_NUMBERS_OF_WATCHES = itertools.count(1)
_TAKEN: dict[str, set[int]] = {}  # key → places of this process's open watches


def _ranks(numbers: list[int]) -> str:
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {', '.join(map(str, numbers))}"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
