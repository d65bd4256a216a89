"""`Watch`: attaches to a model and its optimiser, observes steps of training, and never breaks it.

Long for one file: its methods are the callbacks of one state machine, the step in progress, and share that state. What
has a state of its own has a file of its own beside it (cadence, observer, loss tap, probes, parameters, site readings).
"""

from __future__ import annotations

import atexit
import functools
import json
import math
import os
import random
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from holdfast.core.errors import HoldfastError, WatchError
from holdfast.core.event import Event, EventKind
from holdfast.core.interrupt import deferred
from holdfast.core.protocols import Sink
from holdfast.core.reading import Reading, Table
from holdfast.core.record import StepRecord
from holdfast.core.site import Site
from holdfast.core.statistic import Statistic
from holdfast.core.structure import Structure
from holdfast.core.warn import warn_user
from holdfast.live.hooks import HookSet, all_detached
from holdfast.live.inner import compiled_model, inner_model
from holdfast.live.labelled_batch import LossFn
from holdfast.live.leaves import observed_leaves
from holdfast.live.measurable import transforming
from holdfast.live.ranks import talks
from holdfast.live.replay import Autocast, Call, record_call, replay
from holdfast.live.structure import extract
from holdfast.live.unseen import compiled_regions, is_compiled
from holdfast.monitor.asked import Asked
from holdfast.monitor.cadence import Cadence, Every
from holdfast.monitor.drift import paired_drift
from holdfast.monitor.first_samples import first_samples, samples_wanted
from holdfast.monitor.fixed_probe import FixedProbe
from holdfast.monitor.given import chosen, probe_call, shapes
from holdfast.monitor.loss_tap import TAP
from holdfast.monitor.module_tree import ModuleTree
from holdfast.monitor.nonfinite import keep_batch, nonfinite_event
from holdfast.monitor.observer import MAX_ELEMENTS, Gradient, Observer
from holdfast.monitor.parameters import Parameters
from holdfast.monitor.ranks import Ranks
from holdfast.monitor.roles import Roles, roles
from holdfast.monitor.site_readings import Past, site_readings
from holdfast.stats.features import Features

Mode = Literal["sampled", "exact"]

TOGETHER, LINGER, BRIEFLY = 32, 1.0, 0.1
"""Records go to the store so many at a time, or after so many seconds, those with statistics sooner: by itself, each
would wake the store's thread. What was measured or happened goes at once."""

CHANNELS = 5, 15
"""Steps with statistics alone tell of channels once in so many, drawn anew each time: rows of channels are kept merged
over ten steps anyway, and are most of what would be written."""

EPISODES = 5
"""Stretches of non-finite steps that are looked into: a run that breaks at every other step must not be replayed at
each of them."""

# Models under watch, and the name of the run that watches each.
_WATCHED: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def watched(model: nn.Module) -> bool:
    """Whether a watch is on a model.

    Args:
        model: as it was given to the watch, or what its wrapper holds.
    """
    return inner_model(model) in _WATCHED


class Watch:
    """Watches one model in training.

    An optimiser step is a step of the run. Loss and learning rate are kept at every step that `"auto"` does not let
    pass unseen, the norm of all gradients as often as the budget allows. At the steps that the cadence chooses, every
    leaf layer's inputs, outputs and output gradients are read; at some of them two probes tell how far the parameters
    alone moved what the layers see: the *step probe* forwards the batch just trained on once more after the step (same
    random numbers), the *fixed probe* forwards a batch kept out of training at lags of 1, 10, 100 and 1,000 steps
    (training mode: normalisers use the probe's own statistics; dropout masks are the same each time). Both leave
    parameters, buffers, gradients and random generators bit for bit as they were.

    An error of the monitor's own detaches the part that failed, is recorded, and is warned of once; training goes on.

    Args:
        model: the network; a compiled or distributed one is watched inside its wrapper.
        optimizer: steps the model's parameters.
        open_sink: makes the sink for the records; called once everything else was found in order.
        name: what the run is called in messages.
        stream: name of the model in the run.
        probe: a batch kept out of training: a tensor, a tuple of positional or a dict of keyword arguments; or a
            number: so many samples of the first training batch.
        every: observe every so many steps, or `"auto"`: as often as `budget` allows.
        budget: the monitor's largest share of the bare run's time, with `"auto"`.
        probe_every: probes and the measures that need them every so many steps, or `"auto"`: as often as `budget`
            allows. By default at every observed step; with `every="auto"` it is `"auto"`.
        sites: module paths to observe, as shell patterns; all leaves when `None`.
        mode: `"sampled"` reads at most `max_elements` of a tensor, `"exact"` reads all; sketches count fewer of them.
        max_elements: of one tensor, in sampled mode.
        measures: names of measures to take beside the watch's own, at steps that have probes.
        batch: `(inputs, targets)`, for measures that evaluate the loss.
        loss_fn: `(output, targets)` → a scalar, for them.
        folder: where batches that broke the loss are kept; nowhere when `None`.
        guest: the model was found, not given: other guests may watch it for other optimisers, and all of them leave
            when somebody watches it who is none.
        strict: raise the monitor's own errors (for tests).

    Raises:
        WatchError: the model has no parameters, is watched already, does not accept the probe, or the optimiser
            steps none of its parameters.
        InputError: an option is not usable.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        open_sink: Callable[[], Sink],
        *,
        name: str,
        stream: str = "net",
        probe: Any = None,
        every: Every = "auto",
        budget: float = 0.01,
        probe_every: Every | None = None,
        sites: Sequence[str] | None = None,
        mode: Mode = "sampled",
        max_elements: int = MAX_ELEMENTS,
        measures: Sequence[str] = (),
        batch: tuple[Any, Any] | None = None,
        loss_fn: LossFn | None = None,
        folder: Path | None = None,
        guest: bool = False,
        strict: bool = False,
    ) -> None:
        self._given = model
        self._model = inner_model(model)
        self._optimizer = optimizer
        self._stream = stream
        self._folder = folder
        self._guest = guest
        self._strict = strict
        self._pid = os.getpid()
        self._random = random.Random(0)
        self._broken: set[str] = set()  # parts that failed and are left out
        self._noted: set[str] = set()  # reasons given once why a part had nothing to say
        self._unread: frozenset[str] = frozenset()
        self._compiled_told = False
        self._in_backward = False  # whether the optimiser has begun to step inside the backward under way
        self._stale = False  # whether the structure is that of the model before it changed
        self._events: list[Event] = []
        self._step = 0
        self._observing = False
        self._probing = False
        self._resting = 0  # steps still to pass unseen
        self._task = -1  # the backward pass in which the last of them was counted
        self._rests = 0  # as many as were to, in this rest
        self._slept = 0.0  # the time at which it began
        self._asking = False  # whether the step gets the measures that were asked for
        self._norm_seconds = 0.0
        self._asked_seconds = 0.0
        self._tells_channels = 0  # the step from which on they are told again
        self._handed = 0.0
        self._waiting: list[StepRecord] = []  # for the store: many at once, of steps that were not observed
        self._closed = True  # until everything is in place
        self._call: Call | None = None
        self._passed = False  # whether a forward that is trained on began since the last step
        self._autocast: Autocast | None = None
        self._began: float | None = None  # when the step's first forward did
        self._held: StepRecord | None = None
        self._logged: dict[str, float] = {}
        self._logs = False
        self._loss: float | None = None
        self._nonfinite = False  # whether the last step was
        self._episodes = 0
        self._structure: Structure | None = None
        self._past = Past()
        self._evals = 0

        self._stepping: Optimizer | None = None  # the outermost that is inside its step
        self._roots: int | None = None  # within a closure's step: backward passes heard before it
        self._to_cut = samples_wanted(probe) or 0

        _check(self._model, optimizer)
        self._asked = Asked(measures, self._model, batch=batch, loss_fn=loss_fn, stream=stream)
        self._cadence = Cadence(every, budget, probe_every, asked=bool(self._asked))
        self._parameters = Parameters(self._model, optimizer, stream)
        self._tree = ModuleTree(self._model, optimizer)
        self._patterns = sites
        leaves = chosen(observed_leaves(self._model), sites)
        call = None if isinstance(probe, int) else probe_call(probe)
        structure = self._first_structure(call)
        self._leaves = leaves
        self._observer = Observer(
            leaves,
            stream=stream,
            max_elements=max_elements if mode == "sampled" else None,
            roles=roles(leaves, structure),
            failed=self._layer_failed,
        )
        self._fixed = None if call is None else FixedProbe(lambda: self._forward_probe(call))

        self.sink = open_sink()
        options = json.dumps([every, probe_every, call is not None])
        scales, rescale = self._observer.scales, self._observer.rescale
        self._ranks = Ranks(model, key=stream, options=options, scales=scales, rescale=rescale)
        if self._ranks.world > 1:
            self._cadence.ranks = self._ranks
            if self._asked:
                self._note(f"not taken in a distributed run: {', '.join(self._asked.names)}")
        self._describe(structure, seen=bool(structure.order) or self._ranks.world > 1)
        for other in _guests(self._model) if not guest else []:
            other.close()
        # Nothing above this line touched the model; from here on `close` takes everything back.
        _WATCHED[self._model] = name
        self._root_hooks = HookSet()
        self._root_hooks.pre(self._model, self._forward_begins, traced=self._compiled_begins, first=True)
        if (wrapper := compiled_model(model)) is not self._model:
            self._root_hooks.pre(wrapper, self._wrapper_begins)
        self._root_hooks.attach()
        self._step_hooks: list[RemovableHandle] = []
        self.follow(optimizer)
        TAP.open(self._step_skipped)
        self._closed = False
        _close_at_exit()
        _OPEN.add(self)
        self._next()

    # What the user calls

    @property
    def step(self) -> int:
        """Optimiser steps seen so far."""
        return self._step

    def follow(self, optimizer: Optimizer) -> None:
        """Count the steps of one more optimiser of the same parameters; the one that stepped last is the watch's.

        Args:
            optimizer: takes over from another, takes turns with it, or wraps it: a step within a step counts once.
        """
        if optimizer is not self._optimizer:
            self._adopt(optimizer)
        self._step_hooks = [
            *(handle for handle in self._step_hooks if handle.hooks_dict_ref() is not None),
            optimizer.register_step_pre_hook(self._step_begins),
            optimizer.register_step_post_hook(self._step_ends),
        ]

    def _adopt(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters = Parameters(self._model, optimizer, self._stream)

    def log(self, **values: float | int | Tensor) -> None:
        """Add values of your own to the present step; `loss=` replaces the loss taken from `backward()`.

        Before the optimiser's step they belong to the step under way, after it (until the next forward) to the step
        just done.

        Args:
            values: numbers, or tensors of one element.
        """
        numbers = {name: float(value) for name, value in values.items()}
        self._logs = True  # no step may pass unseen: nobody could say which one the values are of
        if self._resting:
            self._wake()
        if self._held is not None:
            self._held = replace(self._held, values={**self._held.values, **numbers})
        else:
            self._logged.update(numbers)

    def close(self) -> None:
        """Take every hook off and write what is still held; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._pid:
            return
        _OPEN.discard(self)
        if self._resting:
            self._wake()
        TAP.close(self._step_skipped)
        for handle in self._step_hooks:
            handle.remove()
        self._root_hooks.close()
        self._observer.close()
        self._ranks.close()
        if not _guests(self._model):
            _WATCHED.pop(self._model, None)
        self._guard("account", self._write_account)
        self.sink.close()

    def __del__(self) -> None:
        # A notebook's cell run again rebinds model, optimiser and run: the old watch goes with them.
        if not getattr(self, "_closed", True):
            self.close()

    # What the hooks call

    def _forward_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch._C._current_graph_task_id() != -1 or transforming():
            return  # a checkpoint recomputes, or torch.func differentiates: not a pass of training
        if self._began is None and module.training:
            self._began = time.perf_counter()
        with self._cadence.timed("hooks"):
            self._guard("forward", self._forward, args, kwargs)

    def _wrapper_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The compiled form of the model is called; the model's own call may lie within what was compiled."""
        with self._cadence.timed("hooks"):
            self._guard("forward", self._record, args, kwargs)

    def _compiled_begins(self, tensor: Tensor, leaf: str, grad: bool) -> None:
        """The model is called within compiled code, where its arguments are not known."""
        if torch._C._current_graph_task_id() != -1:
            return
        if self._began is None and self._model.training:
            self._began = time.perf_counter()
        with self._cadence.timed("hooks"):
            self._guard("forward", self._begin_pass, grad)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._record(args, kwargs)
        self._begin_pass(torch.is_grad_enabled())

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._flush()
        if self._model.training and torch.is_grad_enabled() and not self._repeated:
            whole = self._probing
            random = whole or self._cadence.roomy
            self._call = record_call(args, kwargs, random=random, python=whole, numpy=whole)
            self._autocast = self._call.autocast
            if self._to_cut:
                self._guard("fixed probe", self._cut_probe, self._call)

    def _begin_pass(self, grad: bool) -> None:
        self._flush()
        if self._model.training and grad:
            self._passed = True
            if self._observing:
                first = not self._repeated
                self._observer.begin_pass("train", reading=first, trained_on=first)
        elif self._observing:
            # One evaluation pass per observed step tells as much as all of them.
            self._evals += 1
            self._observer.begin_pass("eval", reading=self._evals == 1, trained_on=grad)

    @property
    def _repeated(self) -> bool:
        """Whether a closure is evaluated once more: a step is read, like its loss, at the first evaluation."""
        return self._roots is not None and TAP.roots > self._roots

    def _cut_probe(self, call: Call) -> None:
        wanted, self._to_cut = self._to_cut, 0
        cut = first_samples(call, wanted)
        if isinstance(cut, str):
            self._note(f"no fixed probe: {cut}")
        else:
            self._fixed = FixedProbe(lambda: self._forward_probe(cut))

    def _step_begins(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._resting:
            if self._stepping is None:
                self._stepping = optimizer
            return
        if self._in_backward or os.getpid() != self._pid or self._stepping not in (None, optimizer):
            return
        if self._task != -1 and self._counted():
            return
        self._stepping = optimizer
        if optimizer is not self._optimizer:
            self._guard("step", self._adopt, optimizer)
        with self._cadence.timed("hooks"):
            self._guard("step", self._before_step, _has_closure(args, kwargs))

    def _before_step(self, closure: bool) -> None:
        self._flush()
        # A closure is evaluated inside the step: its loss is not known yet.
        self._roots = TAP.roots if closure else None
        self._loss = None if closure else TAP.take(self._optimizer, again=self._guest)
        loss = self._logged.get("loss", self._loss)
        if loss is not None and not math.isfinite(loss):
            self._guard("non-finite replay", self._locate, loss)
        if self._probing:
            self._guard("parameters", self._parameters.hold)
        if self._asking:
            self._guard("measures asked for", self._asked.hold)

    def _step_ends(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._resting:  # all that runs then, and so without a call more than it needs
            if self._stepping is not optimizer:
                return
            self._stepping = None
            task = torch._C._current_graph_task_id()
            if getattr(optimizer, "found_inf", None) is None and task == -1 and self._resting > 1:
                self._step += 1
                self._resting -= 1
            else:
                self._rest(optimizer)
            return
        if self._in_backward or os.getpid() != self._pid or self._stepping is not optimizer:
            return
        self._stepping = self._roots = None
        if _found_infinity(optimizer):
            self._step_skipped()
        elif torch._C._current_graph_task_id() != -1:
            # It steps parameter by parameter, as gradients come: one step of the run when the backward is over.
            self._in_backward = self._logs = True
            TAP.afterwards(self._backward_ends)
        else:
            self._finish_step(_has_closure(args, kwargs))

    def _backward_ends(self) -> None:
        self._in_backward = False
        self._finish_step(closure=False)

    def _finish_step(self, closure: bool) -> None:
        self._step += 1
        self._guard("step", self._after_step, closure)
        account = self._cadence.account
        account.hooks += self._observer.seconds
        self._observer.seconds = 0.0
        account.writing = self.sink.seconds
        began, self._began = self._began, None
        lasted = None if began is None else time.perf_counter() - began
        self._cadence.stepped(
            observed=self._observing,
            probed=self._probing,
            norm=self._norm_seconds,
            asked=self._asked_seconds,
            lasted=lasted,
        )
        self._norm_seconds = self._asked_seconds = 0.0
        self._call = None  # the batch must not be taken for a later step's, nor be kept alive
        self._passed = False
        self._next()

    def _step_skipped(self) -> None:
        """The gradient scaler found an infinity and let this model's step fall: forget what was seen for it."""
        if not self._passed or self._closed:
            return
        self._event("skipped-step", f"the gradient scaler skipped a step after step {self._step}")
        self._call = None
        self._passed = False
        if self._observing:
            self._begin_reading()

    def _next(self) -> None:
        booked = self._cadence.account.hooks
        observed = self._observing
        self._observing = self._probing = self._asking = False
        self._guard("cadence", self._prepare_next, observed)
        with self._cadence.timed("hooks"):
            for reason in self._ranks.told:
                self._note(reason)
            if not self._observing:
                self._observer.detach()
                rest = 0 if self._logs or self._closed else self._cadence.rest(self._step + 1)
                if rest:
                    self._rests = self._resting = rest
                    self._slept = time.perf_counter()
                    self._flush()
                    self._root_hooks.detach()
                    TAP.rest(self)
        self._cadence.ready(self._cadence.account.hooks - booked)

    def _rest(self, optimizer: Optimizer) -> None:
        """A step passes unseen; after the last one the hooks come back."""
        if os.getpid() != self._pid or _found_infinity(optimizer) or self._counted():
            return
        self._step += 1
        self._resting -= 1
        if not self._resting:
            self._wake()
            self._next()

    def _counted(self) -> bool:
        """Whether a step in the same backward pass was counted already, of an optimiser that steps inside it."""
        task = torch._C._current_graph_task_id()
        counted = task != -1 and task == self._task
        self._task = task
        return counted

    def _wake(self) -> None:
        self._cadence.rested(self._rests - self._resting, time.perf_counter() - self._slept)
        self._resting = 0
        self._loss = None  # of the last step that was looked at
        TAP.wake(self)
        self._root_hooks.attach()

    def _after_step(self, closure: bool) -> None:
        with self._cadence.timed("hooks"):
            values = self._values(closure)
        readings: list[Reading] = []
        asked: list[Reading | Table] = []
        summaries: dict[Site, Any] = {}
        channels: dict[Site, Any] = {}
        if self._observing:
            if self._probing:  # else the next step may be read by the same hooks
                self._observer.detach()
            seen, gradients = self._observer.observations, self._observer.gradients
            for gradient in gradients.values():
                gradient.scale = TAP.scale * self._ranks.averaged
            self._guard("structure", self._rescan)
            if self._probing:
                readings = self._measured(seen, gradients, self._observer.normalised)
            if self._asking:
                asked = self._measures_asked_for(readings)
            with self._cadence.timed("measures"):
                summaries, channels = self._statistics(seen, gradients)
            self._tell_unread()
            self._tell_compiled(seen)
        self._held = StepRecord(
            self._step,
            self._stream,
            values,
            summaries,
            channels,
            (*readings, *(each for each in asked if isinstance(each, Reading))),
            tuple(each for each in asked if isinstance(each, Table)),
            events=tuple(self._events),
            # The first step stays as it was: how training began is asked long after.
            pinned=self._step == 1 or self._cadence.alarmed(self._step),
        )
        self._events.clear()

    def _measured(
        self, seen: Mapping[Site, Any], gradients: Mapping[Site, Any], normalised: Mapping[Site, Any]
    ) -> list[Reading]:
        """Probes, and the readings of the step's measures."""
        may = self._may_replay()
        if may.structure and not self._known:
            self._guard("structure", self._see_structure)
        drifts = (self._guard("step probe", self._step_probe, seen) if may.step else None) or []
        with self._cadence.timed("measures"):
            found = self._guard("measures", self._site_readings, seen, gradients, normalised, drifts)
            readings = [*(found or []), *drifts]
            readings += self._guard("parameters", self._parameters.readings, self._step) or []
        if self._fixed is not None and may.fixed:
            readings += self._guard("fixed probe", self._fixed.read, self._step) or []
        return readings

    def _measures_asked_for(self, readings: Sequence[Reading]) -> list[Reading | Table]:
        """What was asked for beside the readings that the step has anyway."""
        begin = time.perf_counter()
        with self._cadence.timed("measures"), all_detached():
            found = self._asked.take(
                self._step,
                call=self._call if self._call is not None and self._call.intact else None,
                optimizer=self._optimizer,
                structure=self._structure,
                guard=self._guard,
                note=self._note,
            )
        self._asked_seconds = time.perf_counter() - begin
        taken = {(each.measure, each.site) for each in readings}
        return [each for each in found if isinstance(each, Table) or (each.measure, each.site) not in taken]

    def _unscaled(self, gradient: Gradient) -> Statistic:
        """Of the gradient of the loss that the parameters follow, which several ranks share."""
        if self._ranks.averaged == 1.0:
            return gradient.seen.packed_summary
        return gradient.seen.summary.scaled(1 / self._ranks.averaged)

    def _statistics(
        self, seen: Mapping[Site, Any], gradients: Mapping[Site, Any]
    ) -> tuple[dict[Site, Statistic], dict[Site, Statistic]]:
        """Of the tensors seen, as they are written: summaries, and those of channels."""
        keep = self._kept_outputs(self._observer.in_force)
        kept = {site: each for site, each in seen.items() if site.port == "input" or site.module in keep}
        summaries: dict[Site, Statistic] = {site: each.packed_summary for site, each in kept.items()}
        channels: dict[Site, Statistic] = {}
        if self._probing or self._step >= self._tells_channels:
            channels = {site: each.packed_channels for site, each in kept.items()}
            self._tells_channels = self._step + self._random.randint(*CHANNELS)
        if TAP.scale == 1.0:  # scaled gradients have figures of no meaning to anybody else
            summaries |= {site: self._unscaled(gradient) for site, gradient in gradients.items()}
        return summaries, channels

    def _prepare_next(self, observed: bool) -> None:
        """Decide what is done at the next step, and make ready for it; told whether the last one was observed."""
        # Asked even when there is nothing left to observe with: the other ranks wait for the answer.
        if not self._cadence.wants(self._step + 1) or "step" in self._broken:
            return
        if not observed:  # else it was done a moment ago
            with self._cadence.timed("hooks"):
                self._guard("structure", self._rescan)
        self._probing = self._cadence.probes(self._step + 1)
        self._asking = self._probing and self._cadence.asks(self._step + 1)
        if self._probing and self._fixed is not None:
            # Asked by all, whatever this rank holds: they may differ after a failure.
            wanted = not self._fixed.holds(self._step) and "fixed probe" not in self._broken
            if self._ranks.ready(self._step + 1, wanted) == (True,):
                self._guard("fixed probe", self._fixed.hold, self._step)
        with self._cadence.timed("hooks"):
            self._begin_reading()
            self._evals = 0
            self._observer.attach()
        self._observing = True

    def _begin_reading(self) -> None:
        self._observer.begin(
            self._random.random(), only=None if self._probing else self._kept_outputs(self._observer.roles)
        )

    # Parts of an observed step

    @property
    def _known(self) -> bool:
        """Whether the structure, as it is now, was seen with its flow of data."""
        return self._structure is not None and bool(self._structure.order) and not self._stale

    def _may_replay(self) -> _Replays:
        """What may be replayed: where a forward talks to the other ranks, what all of them are ready for."""
        if not self._ranks.talks:
            return _Replays()
        whole = self._call is not None and self._call.intact
        ready = {"structure": whole and not self._known, "step probe": whole, "fixed probe": self._fixed is not None}
        return _Replays(
            *self._ranks.ready(self._step, *(flag and part not in self._broken for part, flag in ready.items()))
        )

    def _values(self, closure: bool) -> dict[str, float]:
        loss = TAP.take(self._optimizer, first=True) if closure else self._loss
        if closure and loss is not None and not math.isfinite(loss):
            self._guard("non-finite replay", self._locate, loss)
        values: dict[str, float] = {} if loss is None else {"loss": loss}
        norm = None
        if self._cadence.takes_norm(self._step, observed=self._observing):
            begin = time.perf_counter()
            norm = self._parameters.global_gradient_norm()
            self._norm_seconds = time.perf_counter() - begin
        if norm is not None:
            values["gradient-norm"] = norm
            if not math.isfinite(norm):
                self._guard("non-finite replay", self._nonfinite_gradient, norm)
        if all(math.isfinite(each) for each in values.values()):
            self._nonfinite = False
        rate = self._optimizer.param_groups[0].get("lr")
        if rate is not None:
            values["learning-rate"] = float(rate)
        values.update(self._logged)
        self._logged.clear()
        return values

    def _step_probe(self, seen: Mapping[Site, Any]) -> list[Reading]:
        """Forward the batch just trained on once more, and compare sample by sample."""
        call = self._call
        if not seen:
            return []
        if self._observer.compiled and not self._reaches_compiled():
            self._note(
                "no step probe: the model was compiled after the watch began, around another wrapper or within another "
                "function; type: model = torch.compile(model) before hf.watch(model, …)"
            )
            return []
        if call is None:
            self._note("no step probe: the model itself was not called in training mode with gradients")
            return []
        if not call.intact:
            self._note("no step probe: the batch was changed in place after the forward")
            return []
        with self._cadence.timed("probes"):
            reference = {site: each.features for site, each in seen.items() if site.phase == "train"}
            self._observer.observations = {}
            self._observer.begin_pass("train")
            self._replay(call, "as it was", compiled=True)
            current = {site: each.features for site, each in self._observer.observations.items()}
            return paired_drift(reference, current, step=self._step, lag=1)

    def _reaches_compiled(self) -> bool:
        """Whether calling what was given to the watch runs the code that was compiled of it, and no other rank's."""
        regions = compiled_regions(self._given)
        return bool(regions) and (regions[0][0] != "" or is_compiled(compiled_model(self._given)))

    def _forward_probe(self, call: Call) -> dict[Site, Features]:
        with self._cadence.timed("probes"):
            if self._autocast is not None:
                call = replace(call, autocast=self._autocast)
            # The same positions each time: what is compared is the same part of the same tensors.
            self._observer.begin(0.5)
            self._observer.begin_pass("probe")
            self._replay(call, "train")
            seen = {site: each.features for site, each in self._observer.observations.items()}
            self._observer.begin(0.0)
            return seen

    def _replay(self, call: Call, mode: Literal["as it was", "train"], *, compiled: bool = False) -> None:
        booked = self._observer.seconds
        with all_detached():
            self._observer.attach()
            try:
                replay(self._given, call, mode=mode, compiled=compiled)
            finally:
                self._observer.seconds = booked  # the hooks' time is the probe's
                self._observer.detach()

    def _site_readings(
        self,
        seen: Mapping[Site, Any],
        gradients: Mapping[Site, Any],
        normalised: Mapping[Site, Any],
        drifts: list[Reading],
    ) -> Any:
        return site_readings(
            seen,
            gradients,
            drifts,
            normalised=normalised,
            past=self._past,
            structure=self._structure,
            roles=self._observer.in_force,
            step=self._step,
        )

    def _kept_outputs(self, known: Roles) -> frozenset[str]:
        """Layers whose output has statistics of its own: rectifiers (dead units) and the last layer."""
        last = self._structure.order[-1:] if self._structure else ()
        return known.rectifiers.union(last)

    # Structure

    def _first_structure(self, probe: Call | None) -> Structure:
        if talks(self._model):
            probe = None  # not before all ranks are known to be there
        with all_detached():
            if probe is not None:
                self._try_probe(probe)
            return extract(self._given, self._optimizer, stream=self._stream, call=probe)

    def _try_probe(self, probe: Call) -> None:
        try:
            replay(self._model, probe, mode="train")
        except HoldfastError:
            raise
        except Exception as exception:
            raise WatchError(
                "a probe that the model's forward accepts",
                f"{shapes(probe)}, on which the forward raised {type(exception).__name__}: {exception}",
                "type: probe=inputs[:64], with inputs as the training loop passes them to the model",
            ) from exception

    def _see_structure(self) -> None:
        """Extract the structure from the batch just trained on: there was no probe before, or the model changed."""
        call = self._call if self._call is not None and self._call.intact else None
        if call is None and not self._stale:
            return
        self._stale = False
        with self._cadence.timed("probes"), all_detached():
            structure = extract(self._given, self._optimizer, stream=self._stream, call=call)
        self._observer.roles = roles(self._leaves, structure)
        self._describe(structure, seen=True)

    def _rescan(self) -> None:
        """Follow a model whose layers were added, replaced, frozen or unfrozen in the loop."""
        if not self._tree.changed():
            return
        before, self._leaves = dict(self._leaves), chosen(observed_leaves(self._model), self._patterns, strict=False)
        now = dict(self._leaves)
        new = sorted(path for path, module in now.items() if before.get(path) is not module)
        gone = sorted(path for path in before if path not in now)
        if new or gone:
            self._observer.rehook(self._leaves)
        # What was seen of the model as it was is no reference for the one it is.
        self._past = Past()
        if self._fixed is not None:
            self._fixed.forget()
        self._stale = True
        told = [f"{word} {', '.join(map(repr, paths))}" for word, paths in (("new:", new), ("gone:", gone)) if paths]
        self._event(
            "model-changed",
            f"the model changed before step {self._step + 1 - self._observing}: "
            + ("; ".join(told) or "other parameters are trained"),
            data={"new": new, "gone": gone},
        )

    def _describe(self, structure: Structure, *, seen: bool) -> None:
        self._structure = structure
        if seen:
            self.sink.describe(structure)

    def _tell_unread(self) -> None:
        """Add to what was not seen the values that cannot be read, when there are new ones."""
        unread = frozenset(self._observer.skipped)
        if unread == self._unread or self._structure is None:
            return
        told = [f"{place}: {self._observer.skipped[place]}" for place in sorted(unread - self._unread)]
        self._unread = unread
        self._describe(replace(self._structure, not_seen=(*self._structure.not_seen, *told)), seen=True)

    def _tell_compiled(self, seen: Mapping[Site, Any]) -> None:
        """Add to what was not seen the compiled parts that told nothing in the first step observed."""
        if self._compiled_told or self._structure is None:
            return
        self._compiled_told = True
        told = {site.module for site in seen}
        leaves = {path for path, _ in self._leaves}
        silent = [
            path or "(model)"
            for path, module in compiled_regions(self._given)
            if (inside := leaves & {f"{path}.{name}".strip(".") for name, _ in module.named_modules()})
            and told.isdisjoint(inside)
        ]
        if not (silent or seen or self._passed):
            silent = ["(model)"]
        if silent:
            sentence = (
                f"what flows inside code that torch.compile made before the watch began: {', '.join(silent)}; to see "
                "it, call hf.watch before the model's first compiled call, or torch.compiler.reset() after hf.watch"
            )
            self._describe(replace(self._structure, not_seen=(*self._structure.not_seen, sentence)), seen=True)

    # What goes wrong

    def _locate(self, loss: float) -> None:
        """Replay the batch whose loss is not finite, name the first operation that broke, and keep the batch."""
        if not self._new_episode():
            return
        step = self._step + 1
        self._cadence.alarm(step)
        call = self._call if self._call is not None and self._call.intact else None
        kept = None
        if self._folder is not None and call is not None:
            kept = keep_batch(self._folder, step, call, rank=self._ranks.rank)
        if self._ranks.talks:
            call = None  # the other ranks, whose loss may be finite, do not replay
        with self._cadence.timed("probes"), all_detached():
            self._events.append(nonfinite_event(self._model, call, loss, step=step, kept=kept))

    def _new_episode(self) -> bool:
        """Whether this is the first step of a non-finite stretch, of the few that are looked into."""
        new = not self._nonfinite and self._episodes < EPISODES
        self._episodes += new
        self._nonfinite = True
        return new

    def _nonfinite_gradient(self, norm: float) -> None:
        if not self._new_episode():
            return
        self._cadence.alarm(self._step)
        names = self._parameters.nonfinite_gradients()
        # The gradient flows from the last layer back: what is broken latest in the order of execution broke first.
        where = names[-1] if names else ""
        detail = f"the gradient of {where!r} is not finite, while the loss is" if where else "their sum overflows"
        self._event(
            "nonfinite",
            f"the gradient norm became {norm} at step {self._step}: {detail}",
            data={"where": where, "operation": "backward", "kind": "gradient", "detail": detail},
        )

    def _guard(self, part: str, function: Callable[..., Any], *args: Any) -> Any:
        """Run a part of the monitor; when it fails, leave that part out from then on."""
        if part in self._broken:
            return None
        try:
            return function(*args)
        except Exception as exception:
            self._failed(part, exception)
            return None

    def _failed(self, part: str, exception: Exception) -> None:
        if part in ("step", "cadence"):  # in which the ranks exchange words: they must not wait for this one's
            self._ranks.leave(f"{part} failed")
        if self._strict:
            raise exception
        first = not self._broken
        self._broken.add(part)
        where = "".join(traceback.format_exception(exception)[-2:]).strip()
        sentence = f"{part} failed and is left out from now on: {type(exception).__name__}: {exception}"
        self._event("monitor-error", sentence, data={"part": part, "traceback": where})
        if first:
            warn_user(f"holdfast: {sentence} (training goes on; see the run's events)")

    def _layer_failed(self, path: str, exception: Exception) -> None:
        self._failed(f"reading {path!r}", exception)

    def _note(self, reason: str) -> None:
        """Say once, in the run, why a part had nothing to say at a step."""
        if reason not in self._noted:
            self._noted.add(reason)
            self._event("monitor-error", reason)

    def _event(
        self, kind: EventKind, message: str, *, data: Mapping[str, Any] | None = None, step: int | None = None
    ) -> None:
        self._events.append(Event(self._step if step is None else step, kind, message, data=dict(data or {})))

    # Hand-off

    def _flush(self) -> None:
        """Hand the record of the last step on: nothing can be added to it any more."""
        if self._held is not None:
            record, self._held = self._held, None
            self._waiting.append(record)
            now = self._began or time.perf_counter()
            news = bool(record.readings or record.tables or record.events)
            linger = BRIEFLY if record.summaries else LINGER
            if news or len(self._waiting) >= TOGETHER or now - self._handed > linger or self._closed:
                self._handed = now
                self._hand_off()

    def _hand_off(self) -> None:
        with self._cadence.timed("hand_off"), deferred():  # Ctrl-C in between would lose what is in neither place
            records, self._waiting = self._waiting, []
            for record in records:
                self._guard("hand-off", self.sink.write, record)

    def _write_account(self) -> None:
        self._cadence.account.writing = self.sink.seconds
        message, data = self._cadence.told(self._step)
        self._event("cadence", message, data={"stream": self._stream, **data})
        held = self._held or StepRecord(self._step, self._stream)
        self._held = replace(held, events=(*held.events, *self._events))
        self._flush()


class _Replays(NamedTuple):
    structure: bool = True
    step: bool = True
    fixed: bool = True


# Watches that nobody has closed yet, and what closes them: a script that just ends must not lose its last step.
_OPEN: weakref.WeakSet[Watch] = weakref.WeakSet()


@functools.cache
def _close_at_exit() -> None:
    # Once, after a sink was opened, so that it runs before the sinks' own finalizers.
    atexit.register(_close_all)


def _close_all() -> None:
    for watch in list(_OPEN):
        watch.close()
    _OPEN.clear()


def _guests(model: nn.Module) -> list[Watch]:
    return [watch for watch in _OPEN if watch._guest and watch._model is model]


def _check(model: nn.Module, optimizer: Optimizer) -> None:
    if not isinstance(optimizer, Optimizer):
        raise WatchError(
            "a torch.optim.Optimizer", f"a {type(optimizer).__name__}", "type: hf.watch(model, torch.optim.SGD(...))"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not own:
        raise WatchError(
            "a model with parameters",
            f"{type(model).__name__} without any",
            "type: hf.watch(the_model_you_train, optimizer)",
        )
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise WatchError(
            "the optimiser of this model",
            f"{type(optimizer).__name__} that steps none of its parameters",
            "type: optimizer = torch.optim.SGD(model.parameters(), lr=0.1) for the model that you watch",
        )
    if model in _WATCHED and not _guests(model):
        raise WatchError(
            "a model that nobody watches",
            f"one that the run {_WATCHED[model]!r} watches already",
            "call .close() on that run first",
        )


def _found_infinity(optimizer: Optimizer) -> bool:
    """Whether a fused optimiser is about to let a step fall: a gradient scaler told it of an infinity."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.any())


def _has_closure(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    # `args` starts with the optimiser itself in the hooks of some versions of torch.
    return kwargs.get("closure") is not None or any(callable(each) and not isinstance(each, Optimizer) for each in args)
