"""`prove`: paired runs of the user's own training, with and without a treatment."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import isfinite
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import nn
from torch.optim import LBFGS, Optimizer

from holdfast.clinic.arms import Metric, Trial, seed_all, train_step, trial
from holdfast.clinic.batches import (
    Batch,
    Batches,
    LossFn,
    check_batches,
    check_loss,
    check_metric,
    draw,
    in_an_order_of_its_own,
    once,
)
from holdfast.clinic.proof import TREATED, UNTREATED, Arm, Comparison, Proof, ProofVerdict, Shift, compare
from holdfast.core.errors import HoldfastError, InputError, SurgeryError
from holdfast.core.interrupt import deferred, interruptible
from holdfast.core.treatment import Receipt
from holdfast.diagnosis.spread import dead_modules
from holdfast.live.optimiser import check_owner
from holdfast.live.random_state import preserved_random_state
from holdfast.live.snapshot import Snapshot
from holdfast.monitor.watch import Watch, watched
from holdfast.store.memory import MemoryRun
from holdfast.treatments.scale_rate import ScaleRate

RIVALS = (1 / 3, 3.0)
"""Factors on the learning rate that a treatment has to beat: the cheapest changes there are."""

SHIFT_STEPS, SHIFT_EVERY = 100, 10


@runtime_checkable
class Applicable(Protocol):
    """What can be proved: a plan, or a prescription."""

    @property
    def treatment(self) -> str:
        """Its name."""
        ...

    def trial(self, model: nn.Module | None = None, optimizer: Optimizer | None = None) -> Receipt:
        """Make the change, or rehearse it."""
        ...


Ticker = Callable[[int, int], None]
"""Called after each training step with the steps done and the steps in all."""


def prove(
    plan: Applicable,
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    loss_fn: LossFn,
    *,
    eval_batches: Batches,
    metric: Metric | None = None,
    higher_is_better: bool = True,
    steps: int = 200,
    seeds: int = 5,
    rivals: bool = True,
    shift: bool = True,
    alpha: float = 0.05,
    worthwhile: float = 0.01,
    stop_early: bool = False,
    on_step: Ticker | None = None,
) -> Proof:
    """Train with and without a treatment, several times, and say whether it helped.

    Every arm starts from the present weights and the present state of the optimiser. From seed to seed the order of
    the batches and every global random stream change; within a seed all arms see the same batches in the same order
    and begin with the same random numbers. Judged is the paired difference on `eval_batches`, in eval mode, with
    Student's interval over the seeds. Beside the treatment run two rivals: the untreated model with its learning
    rate divided and multiplied by 3. The rate stays what it is: no scheduler is stepped. Afterwards model, optimiser
    and random generators are bit for bit as before.

    `no measurable benefit`: the interval lies within `worthwhile` on either side of 0, or a rival helps and is not
    measurably worse. Else `helps` and `hurts`: the interval lies on one side of 0. Else `inconclusive`: more seeds or
    more steps would be needed; so it is too where all seeds gave the very same training, which are then one.

    With `stop_early` the interval is looked at after each seed from the third; look k of K may spend
    α·((k/K)³ − ((k−1)/K)³), so that all looks together claim a difference that is none with probability α at most
    (union bound).

    Args:
        plan: from `prescribe` or from a treatment's `plan`; recipes that act on model and optimiser alone (`warm-up`,
            `clip`) are rehearsed. `Plan.nothing()` gives exactly zero.
        model: the model that the plan was worked out for, in the mode in which it trains.
        optimizer: the one that steps it.
        batches: of training; a list, a loader, or a function of the seed. Those of one seed are held in memory; where
            they come in the same order for every seed, each later seed gets an order of its own.
        loss_fn: `(output, targets)` → one number.
        eval_batches: not trained on.
        metric: `(output, targets)` → one number, which then decides instead of the loss.
        higher_is_better: of the metric.
        steps: of each training.
        seeds: how many trainings an arm.
        rivals: whether to run the learning-rate rivals.
        shift: whether to measure parameter drift of the untreated and of the treated run (on the first seed's first
            100 steps, in runs of their own, so that the wall-clock figures stay clean).
        alpha: of the whole proof, between 0 and 1.
        worthwhile: the smallest difference that matters, as a fraction of the untreated outcome.
        stop_early: see above.
        on_step: told of every training step.

    Returns:
        The proof.

    Raises:
        InputError: an argument is not usable (each says how it would be).
        SurgeryError: the plan is a recipe that cannot be rehearsed, is of another model, or is in force already.

    Example:
        >>> import torch
        >>> from holdfast.core.treatment import Plan
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Linear(2, 1)
        >>> data = [(torch.randn(8, 2), torch.randn(8, 1)) for _ in range(4)]
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> proof = prove(Plan.nothing(net), net, sgd, data, nn.functional.mse_loss, eval_batches=data,
        ...               steps=3, seeds=2, rivals=False, shift=False)
        >>> proof.verdict, proof.comparisons[0].differences
        ('no measurable benefit', (0.0, 0.0))
    """
    _check(plan, model, optimizer, alpha, worthwhile)
    check_counts(steps=steps, seeds=seeds)
    check_data(batches, loss_fn, eval_batches, metric)
    if plan.treatment == ScaleRate.name:
        rivals = False  # it is one itself
    with preserved_random_state():
        seed_all(0)
        judged = once(eval_batches)
        bench = _Bench(plan, model, optimizer, loss_fn, judged, metric)
        arms = [UNTREATED, TREATED, *(_rival(each) for each in (RIVALS if rivals else ()))]
        total = steps * seeds * len(arms) + (2 * min(steps, SHIFT_STEPS) if shift else 0)
        bench.on_step = _counter(on_step, total)
        trials: dict[str, list[Trial]] = {name: [] for name in arms}
        primary = "loss" if metric is None else _name_of(metric)
        best_is_high = metric is not None and higher_is_better
        spent = alpha
        done = 0
        original: list[Batch] = []
        try:
            for seed in range(seeds):
                seed_all(seed)
                drawn = draw(batches, steps, seed)
                if seed:
                    drawn = in_an_order_of_its_own(drawn, original, seed)
                else:
                    original = drawn
                for name in arms:
                    trials[name].append(bench.run(name, drawn, seed))
                done = seed + 1
                if stop_early and 3 <= done < seeds:
                    spent = _spend(alpha, done, seeds)
                    treated, untreated = _arm(TREATED, trials), _arm(UNTREATED, trials)
                    look = compare(primary, treated, untreated, higher_is_better=best_is_high, alpha=spent)
                    if look.better is not None:
                        break
            else:
                spent = _spend(alpha, seeds, seeds) if stop_early else alpha
            shifts: tuple[Shift, ...] = ()
            if shift:
                seed_all(0)
                first = draw(batches, min(steps, SHIFT_STEPS), 0)
                shifts = tuple(each for name in (UNTREATED, TREATED) if (each := bench.shift(name, first)) is not None)
        finally:
            bench.snapshot.restore()
    return _conclude(plan.treatment, trials, primary, best_is_high, spent, worthwhile, done, steps, shifts)


class _Bench:
    """Runs arms on the one model, and puts it back after each."""

    def __init__(
        self,
        plan: Applicable,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFn,
        judged: list[Batch],
        metric: Metric | None,
    ) -> None:
        self.plan, self.model, self.optimizer = plan, model, optimizer
        self.loss_fn, self.judged, self.metric = loss_fn, judged, metric
        self.snapshot = Snapshot(model, optimizer)
        self.on_step: Callable[[], None] = lambda: None

    def run(self, name: str, drawn: list[Batch], seed: int) -> Trial:
        """Train one arm under one seed."""
        return self._within(
            name,
            seed,
            lambda: trial(self.model, self.optimizer, drawn, self.loss_fn, self.judged, self.metric, self.on_step),
        )

    def shift(self, name: str, drawn: list[Batch]) -> Shift | None:
        """Train one arm while it is watched, for its drift."""
        history = MemoryRun(name)

        def train() -> None:
            watch = Watch(self.model, self.optimizer, lambda: history, name=f"proof, {name}", every=SHIFT_EVERY)
            try:
                for batch in drawn:
                    self.on_step()
                    if not isfinite(train_step(self.model, self.optimizer, batch, self.loss_fn)):
                        break
            finally:
                watch.close()

        try:
            self._within(name, 0, train)
        except InputError:
            raise
        except HoldfastError:  # a model that cannot be watched can still be proved
            return None
        dead = dead_modules(history, "net")
        found: dict[str, list[float]] = {}
        for reading in history.readings("parameter-drift", lag=1):
            site = reading.site
            if site.port == "input" and site.phase == "train" and site.module not in dead and isfinite(reading.value):
                found.setdefault(site.label, []).append(reading.value)
        if not found:
            return None
        medians = {label: float(np.median(values)) for label, values in found.items()}
        where = max(medians, key=lambda label: medians[label])
        values = [value for each in found.values() for value in each]
        return Shift(name, float(np.median(values)), medians[where], where, len(values), len(dead))

    def _within(self, name: str, seed: int, train: Callable[[], Any]) -> Any:
        """Apply what an arm asks for, train, take all of it back."""
        with deferred():
            self.snapshot.restore()
            receipt = self._apply(name)
            try:
                for parameter in self.model.parameters():
                    parameter.grad = None
                seed_all(seed)
                with interruptible():
                    return train()
            finally:
                if receipt is not None:
                    receipt.undo()
                self.snapshot.restore()

    def _apply(self, name: str) -> Receipt | None:
        if name == UNTREATED:
            return None
        if name == TREATED:
            return self.plan.trial(self.model, self.optimizer)
        factor = next(each for each in RIVALS if _rival(each) == name)
        return ScaleRate(factor).plan(self.model, self.optimizer).apply()


def _conclude(
    treatment: str,
    trials: dict[str, list[Trial]],
    primary: str,
    best_is_high: bool,
    alpha: float,
    worthwhile: float,
    seeds: int,
    steps: int,
    shift: tuple[Shift, ...],
) -> Proof:
    arms = {name: _arm(name, trials) for name in trials}
    treated, untreated = arms[TREATED], arms[UNTREATED]
    main = compare(primary, treated, untreated, higher_is_better=best_is_high, alpha=alpha)
    loss = compare("loss", treated, untreated, higher_is_better=False, alpha=alpha)
    comparisons = [main] if primary == "loss" else [main, loss]
    against = {
        name: compare(primary, treated, arm, higher_is_better=best_is_high, alpha=alpha)
        for name, arm in arms.items()
        if name not in (TREATED, UNTREATED)
    }
    comparisons += against.values()
    helpful = [
        name
        for name in against
        if compare(primary, arms[name], untreated, higher_is_better=best_is_high, alpha=alpha).better
    ]
    unbeaten = [against[name] for name in helpful if against[name].better is not True]
    verdict, sentence = _verdict(main, untreated, treated, unbeaten, worthwhile, seeds)
    if seeds > 1 and any(main.differences) and all(_repeated(arm) for arm in (untreated, treated)):
        verdict = "inconclusive"
        sentence += (
            f"; but all {seeds} seeds gave the very same training, so that n is 1: give batches that depend on the seed"
        )
    if primary != "loss" and None not in (main.better, loss.better) and main.better != loss.better:
        sentence += f"; the loss says the opposite: {_told(loss)})"
    return Proof(treatment, verdict, sentence, primary, tuple(comparisons), tuple(arms.values()), seeds, steps, shift)


def _verdict(
    main: Comparison, untreated: Arm, treated: Arm, unbeaten: list[Comparison], worthwhile: float, seeds: int
) -> tuple[ProofVerdict, str]:
    if untreated.diverged or treated.diverged:
        told = (
            f"the loss became non-finite in {treated.diverged} of {seeds} treated and {untreated.diverged} of {seeds} "
        )
        told += "untreated trainings"
    else:
        before = _mean(untreated.outcome(main.outcome))
        told = f"{main.outcome}, treated − untreated: {_told(main)}, n = {seeds} seeds; untreated {before:.4g})"
    least = worthwhile * abs(_mean(untreated.outcome(main.outcome)))
    low, high = main.interval
    if -least <= low and high <= least:  # also where it is surely not zero
        return "no measurable benefit", f"{told}; a difference of {least:.3g} would have been worthwhile"
    if main.better is False:
        return "hurts", told
    if main.better is True:
        if unbeaten:
            rival = min(unbeaten, key=lambda each: each.better is not False)  # one that helps more, if any
            how = "helps more" if rival.better is False else "helps too, and is not measurably worse"
            return (
                "no measurable benefit",
                f"{told}; but a {rival.against} {how}: treated − {rival.against}: {_told(rival)})",
            )
        return "helps", told
    return "inconclusive", f"{told}; more seeds or more steps would tell"


def _repeated(arm: Arm) -> bool:
    """Whether every seed gave the same losses, to the last bit."""
    return all(each.losses == arm.trials[0].losses for each in arm.trials)


def _told(of: Comparison) -> str:
    """Mean and interval, the bracket left open."""
    low, high = of.interval
    return f"{_signed(of.mean)} ({100 * (1 - of.alpha):.3g} % interval {_signed(low)} to {_signed(high)}"


def check_counts(**counts: Any) -> None:
    """Refuse what is not a whole number of at least 1.

    Args:
        counts: by the name of their argument.

    Raises:
        InputError: one is not.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} of 1 or more", repr(value), f"type: {name}=5")


def check_data(batches: Batches, loss_fn: Any, eval_batches: Batches, metric: Any) -> None:
    """Refuse, before any training, data and functions that a proof cannot use.

    Args:
        batches: see `prove`.
        loss_fn: see `prove`.
        eval_batches: see `prove`.
        metric: see `prove`.

    Raises:
        InputError: one cannot be used.
    """
    check_batches(batches)
    check_batches(eval_batches, "eval_batches")
    check_loss(loss_fn)
    check_metric(metric)


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimiser that a proof cannot step.

    Args:
        model: that it steps.
        optimizer: as given.

    Raises:
        InputError: it is none, or one whose step needs a closure.
        SurgeryError: it is another model's.
    """
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, LBFGS):
        raise InputError(
            "an optimiser whose step() needs no closure", f"a {type(optimizer).__name__}", "give the one that trains"
        )
    check_owner(model, optimizer)


def _check(plan: Any, model: nn.Module, optimizer: Optimizer, alpha: float, worthwhile: float) -> None:
    if not isinstance(plan, Applicable):
        raise InputError(
            "a plan or a prescription",
            f"a {type(plan).__name__}",
            "type: treatment.plan(model, optimizer), or hf.prescribe(run, model, optimizer)",
        )
    check_optimizer(model, optimizer)
    if not 0 < alpha < 1:
        raise InputError("alpha between 0 and 1", repr(alpha), "type: alpha=0.05")
    if not worthwhile >= 0:
        raise InputError("a worthwhile difference of 0 or more", repr(worthwhile), "type: worthwhile=0.01")
    if watched(model):
        raise SurgeryError("a model that nobody watches", "one under a watch", "close the watch first: run.close()")


def _arm(name: str, trials: dict[str, list[Trial]]) -> Arm:
    return Arm(name, tuple(trials[name]))


def _rival(factor: float) -> str:
    return f"learning rate × {factor:.3g}" if factor >= 1 else f"learning rate ÷ {1 / factor:.3g}"


def _name_of(metric: Metric) -> str:
    """What the metric's function is called; `"metric"` where that says nothing."""
    name = getattr(metric, "__name__", "metric")
    return "metric" if name in ("<lambda>", "loss") else name


def _spend(alpha: float, look: int, looks: int) -> float:
    """What look `look` of `looks` may spend; the first is at 3, which takes what 1 and 2 left."""
    before = 0.0 if look <= 3 else ((look - 1) / looks) ** 3
    return alpha * ((look / looks) ** 3 - before)


def _counter(on_step: Ticker | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, total)

    return tick


def _signed(value: float) -> str:
    return f"{value:+.4g}"


def _mean(values: tuple[float, ...]) -> float:
    return math.fsum(values) / len(values)
