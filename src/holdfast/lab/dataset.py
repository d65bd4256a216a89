"""`Dataset`: real samples in three parts that never overlap: training, probe, held out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from holdfast.core.errors import InputError

PROBE = 128
"""Samples kept out of training for the fixed probe: enough that the noise floor of a mean is √(1/128) ≈ 0.09 SD."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples as rows, in three parts that never overlap.

    Args:
        name: as on the command line.
        source: one phrase that says what it is and how it was prepared.
        classes: number of labels.
        inputs: `(training samples, features)`.
        labels: of the training samples, from 0.
        probe: `(probe samples, features)`: never trained on, for the fixed probe.
        held_out: `(held-out samples, features)`: never trained on, for the accuracy.
        held_out_labels: of the held-out samples.
    """

    name: str
    source: str
    classes: int
    inputs: Float[Tensor, "samples features"]
    labels: Int64[Tensor, " samples"]
    probe: Float[Tensor, "probe_samples features"]
    held_out: Float[Tensor, "held_out_samples features"]
    held_out_labels: Int64[Tensor, " held_out_samples"]

    @property
    def features(self) -> int:
        """Width of a sample."""
        return self.inputs.shape[1]


@dataclass(frozen=True, slots=True)
class Split:
    """Which rows belong to which part."""

    train: Int64[Tensor, " train"]
    probe: Int64[Tensor, " probe"]
    held_out: Int64[Tensor, " held_out"]


def split(samples: int, *, name: str, held_out: float = 0.2, seed: int = 0) -> Split:
    """Deal samples out to the three parts, at random and the same way for the same seed.

    Args:
        samples: how many there are.
        name: of the data, for the error.
        held_out: fraction for the accuracy; 0 where the data come with a test part of their own.
        seed: of the private generator; the global one is not touched.

    Returns:
        Indices of the three parts.

    Raises:
        InputError: fewer samples than a probe and two batches of its size need.

    Example:
        >>> parts = split(1000, name="example")
        >>> len(parts.train), len(parts.probe), len(parts.held_out)
        (672, 128, 200)
    """
    aside = round(samples * held_out)
    if samples - aside - PROBE < 2 * PROBE:
        needed = round(3 * PROBE / (1 - held_out))
        raise InputError(
            f"at least {needed} samples of {name} ({PROBE} for the probe, twice that for training)",
            f"{samples}",
            "point at the whole data set",
        )
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    return Split(train=order[PROBE + aside :], probe=order[:PROBE], held_out=order[PROBE : PROBE + aside])
