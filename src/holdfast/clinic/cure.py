"""`cure`: diagnose, prescribe, prove, and keep only what was proved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from holdfast.clinic.arms import Metric, seed_all, train_step
from holdfast.clinic.batches import Batches, LossFn, draw
from holdfast.clinic.prescribe import Prescription, prescribe
from holdfast.clinic.proof import Proof
from holdfast.clinic.prove import Ticker, check_counts, check_data, check_optimizer, prove
from holdfast.core.finding import Diagnosis
from holdfast.core.treatment import Plan, Receipt
from holdfast.diagnosis.diagnose import diagnose
from holdfast.live.random_state import preserved_random_state
from holdfast.live.snapshot import Snapshot
from holdfast.monitor.watch import Watch
from holdfast.store.memory import MemoryRun

OBSERVATIONS = 20


@dataclass(frozen=True, slots=True)
class Cure:
    """What was found, tried and kept.

    Args:
        diagnosis: the one given, or that of a trial training, which was taken back.
        prescription: for it.
        proofs: of the plans tried, in order.
        receipt: of the one kept; `None` when the model and its optimiser are as they were.
    """

    diagnosis: Diagnosis
    prescription: Prescription
    proofs: tuple[Proof, ...]
    receipt: Receipt | None

    @property
    def plan(self) -> Plan:
        """The plan that is in force; where none is, the one that was chosen first."""
        return self.prescription.plan if self.receipt is None else self.prescription.plans[len(self.proofs) - 1]

    def __str__(self) -> str:
        if self.receipt is not None:
            return f"kept {self.proofs[-1]}"
        if not self.proofs:
            return f"nothing was changed: {self.diagnosis.verdict}"
        return "nothing was changed: " + "; ".join(f"{each.treatment}: {each.verdict}" for each in self.proofs)


def cure(
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
    attempts: int = 3,
    alpha: float = 0.05,
    diagnosis: Diagnosis | None = None,
    on_step: Ticker | None = None,
    on_proof: Callable[[Proof], None] | None = None,
) -> Cure:
    """Find what is wrong, try what answers it, keep what is proved to help.

    The diagnosis of a watched run of this model, or else that of a trial training of `steps`, which is taken back,
    gives the prescription; then up to `attempts` plans of the
    prescription are proved in turn (the treatment, then its alternatives). The first whose proof says `helps` is
    applied. Each of several attempts gets α ÷ attempts, so that a useless treatment is kept with probability α at
    most. Where nothing is proved, model, optimiser and random generators are bit for bit as before.

    Args:
        model: in the mode in which it trains.
        optimizer: that steps it.
        batches: see `prove`.
        loss_fn: see `prove`.
        eval_batches: see `prove`.
        metric: see `prove`.
        higher_is_better: see `prove`.
        steps: of each training of a proof, and of the trial training.
        seeds: of each proof.
        attempts: how many plans to prove at most.
        alpha: of the whole cure.
        diagnosis: of this model's run, such as `hf.diagnose(run)`; then there is no trial training.
        on_step: see `prove`; it counts anew for each proof.
        on_proof: told of every proof.

    Returns:
        What was found, tried and kept; `receipt.undo()` takes it back.

    Raises:
        InputError: see `prove`.
        SurgeryError: see `prove`.
        WatchError: the model is watched already, or cannot be.
    """
    check_optimizer(model, optimizer)
    check_counts(steps=steps, seeds=seeds, attempts=attempts)
    check_data(batches, loss_fn, eval_batches, metric)
    if diagnosis is None:
        diagnosis = _trial(model, optimizer, batches, loss_fn, steps)
    with preserved_random_state():
        seed_all(0)
        batch = _call_batch(draw(batches, 1, 0)[0][0])
    prescription = prescribe(diagnosis, model, optimizer, batch=batch)
    plans = prescription.plans[:attempts]
    proofs: list[Proof] = []
    for plan in plans:
        proofs.append(
            prove(
                plan,
                model,
                optimizer,
                batches,
                loss_fn,
                eval_batches=eval_batches,
                metric=metric,
                higher_is_better=higher_is_better,
                steps=steps,
                seeds=seeds,
                alpha=alpha / len(plans),
                on_step=on_step,
            )
        )
        if on_proof is not None:
            on_proof(proofs[-1])
        if proofs[-1].verdict == "helps":
            return Cure(diagnosis, prescription, tuple(proofs), plan.apply(model, optimizer))
    return Cure(diagnosis, prescription, tuple(proofs), None)


def _trial(model: nn.Module, optimizer: Optimizer, batches: Batches, loss_fn: LossFn, steps: int) -> Diagnosis:
    """Train under a watch, diagnose, take it back."""
    history = MemoryRun("trial training")
    with preserved_random_state():
        seed_all(0)
        drawn = draw(batches, steps, 0)
        snapshot = Snapshot(model, optimizer)
        try:
            every = max(1, steps // OBSERVATIONS)
            watch = Watch(model, optimizer, lambda: history, name="trial training", every=every)
            try:
                for batch in drawn:
                    # The step that breaks is made, as the user's loop would, so that the watch sees and locates it.
                    if not math.isfinite(train_step(model, optimizer, batch, loss_fn, finite_only=False)):
                        break
            finally:
                watch.close()
        finally:
            snapshot.restore()
    return diagnose(history)


def _call_batch(inputs: object) -> object:
    return tuple(inputs) if isinstance(inputs, list) else inputs
