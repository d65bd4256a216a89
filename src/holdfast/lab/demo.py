"""The demo: a real run, watched from its first step to its last, then treated, with proof."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from holdfast.api import watch
from holdfast.clinic.cure import Cure, cure
from holdfast.core.errors import InputError
from holdfast.core.finding import Diagnosis
from holdfast.lab.dataset import Dataset
from holdfast.lab.digits import read_digits
from holdfast.lab.images import read_images
from holdfast.lab.networks import SETUPS, Activation, Setup, Variant, build
from holdfast.lab.reviews import read_reviews

DataName = Literal["digits", "mnist", "fashion-mnist", "reviews"]

BATCH = 128
STEPS = 400
EVERY = 10
"""Steps between two observations: 40 of them in 400 steps, and every lag of the fixed probe falls on one."""

SEEDS = 5
"""Trainings an arm of a proof, each half as long as the run."""

Ticker = Callable[[int, float], None]
"""Called after each step with its number and its loss."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the training came to.

    Args:
        run: the run's folder.
        setup: what was trained.
        steps: optimiser steps done.
        batch: samples a step.
        first_loss: mean loss of the first 20 steps.
        last_loss: mean loss of the last 20 steps.
        chance_loss: loss of a network that knows nothing: the logarithm of the number of classes.
        accuracy: fraction of the held-out samples that it names rightly.
        held_out: how many those are.
        model: as training left it.
        optimizer: that stepped it.
    """

    run: Path
    setup: Setup
    steps: int
    batch: int
    first_loss: float
    last_loss: float
    chance_loss: float
    accuracy: float
    held_out: int
    model: nn.Sequential = field(repr=False, compare=False)
    optimizer: torch.optim.Optimizer = field(repr=False, compare=False)


def read_data(name: DataName, folder: Path | None = None, *, seed: int = 0) -> Dataset:
    """Read the demo's data by name.

    Args:
        name: `"digits"` needs no folder, the others do.
        folder: where the data set's files are.
        seed: of the split.

    Returns:
        The data, in three parts.

    Raises:
        InputError: a folder is missing or superfluous, or its files cannot be read.

    Example:
        >>> read_data("digits").name
        'digits'
    """
    if name == "digits":
        if folder is not None:
            raise InputError(
                "no folder: digits come with scikit-learn",
                repr(str(folder)),
                "type: holdfast demo, or: holdfast demo --data mnist DIR",
            )
        return read_digits(seed=seed)
    if folder is None:
        raise InputError(f"the folder that holds the files of {name}", "none", f"type: holdfast demo --data {name} DIR")
    return read_reviews(folder, seed=seed) if name == "reviews" else read_images(folder, name, seed=seed)


def activation_for(name: str) -> Activation:
    """Which activation the demo's network takes: ReLU for reviews, sigmoid for pictures."""
    return "relu" if name == "reviews" else "sigmoid"


def run_demo(
    data: Dataset,
    run: Path,
    *,
    variant: Variant = "suffering",
    steps: int = STEPS,
    seed: int = 0,
    every: int = EVERY,
    on_step: Ticker | None = None,
) -> Outcome:
    """Train a network with plain SGD while Holdfast watches it.

    Args:
        data: what to train on.
        run: folder of the run.
        variant: which network.
        steps: optimiser steps.
        seed: of the weights and of the order of the batches.
        every: steps between two observations.
        on_step: told of every step.

    Returns:
        What came of it, measured on samples that were not trained on.

    Raises:
        InputError: `steps` is less than 1.
    """
    if steps < 1:
        raise InputError("at least 1 step", str(steps), "type: holdfast demo --steps 400")
    activation = activation_for(data.name)
    setup = SETUPS[activation, variant]
    model = build(variant, features=data.features, classes=data.classes, activation=activation, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=setup.rate)
    with _one_thread():
        losses = _train(model, optimizer, data, run, steps=steps, seed=seed, every=every, on_step=on_step)
    return Outcome(
        run=run,
        setup=setup,
        steps=steps,
        batch=BATCH,
        first_loss=_mean(losses[:20]),
        last_loss=_mean(losses[-20:]),
        chance_loss=float(torch.tensor(float(data.classes)).log()),
        accuracy=held_out_accuracy(model, data),
        held_out=len(data.held_out),
        model=model,
        optimizer=optimizer,
    )


def treat_demo(
    data: Dataset,
    outcome: Outcome,
    diagnosis: Diagnosis,
    *,
    seeds: int = SEEDS,
    on_step: Callable[[int, int], None] | None = None,
) -> Cure:
    """Treat the network that the run left, and keep only what is proved to help on the held-out samples.

    Args:
        data: of the run.
        outcome: of the run.
        diagnosis: of the run.
        seeds: trainings an arm, each half as long as the run.
        on_step: see `prove`.

    Returns:
        What was tried and kept.
    """
    with _one_thread():
        return cure(
            outcome.model,
            outcome.optimizer,
            lambda seed: _batches(data, seed),
            nn.functional.cross_entropy,
            eval_batches=[(data.held_out, data.held_out_labels)],
            metric=accuracy,
            steps=max(1, outcome.steps // 2),
            seeds=seeds,
            diagnosis=diagnosis,
            on_step=on_step,
        )


def held_out_accuracy(model: nn.Module, data: Dataset) -> float:
    """Fraction of the held-out samples whose class the model names rightly, in eval mode.

    Args:
        model: in any mode; it is left in train mode.
        data: with the held-out part.

    Returns:
        Between 0 and 1.
    """
    model.eval()
    with torch.no_grad():
        share = accuracy(model(data.held_out), data.held_out_labels)
    model.train()
    return float(share)


def accuracy(output: Tensor, labels: Tensor) -> Tensor:
    """Fraction of the samples whose class is named rightly.

    Args:
        output: `(samples, classes)`.
        labels: `(samples,)`.
    """
    return (output.argmax(1) == labels).double().mean()


def _batches(data: Dataset, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, in the order of a seed."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(data.inputs), (BATCH,), generator=generator)
        yield data.inputs[rows], data.labels[rows]


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Dataset,
    run: Path,
    *,
    steps: int,
    seed: int,
    every: int,
    on_step: Ticker | None,
) -> list[float]:
    """Plain SGD under `watch`; the loss of every step."""
    losses: list[float] = []
    with watch(model, optimizer, run=run, probe=data.probe, every=every):
        for step, (inputs, labels) in zip(range(1, steps + 1), _batches(data, seed), strict=False):
            loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            if on_step is not None:
                on_step(step, losses[-1])
    return losses


@contextmanager
def _one_thread() -> Iterator[None]:
    """Layers of width 64 only lose by being split: on two busy cores, two threads took three times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
