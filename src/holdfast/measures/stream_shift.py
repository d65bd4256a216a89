"""Stream shift: how far a stream's level lies from that of the streams that it meets.

    |μ_s − mean_t≠s μ_t| / σ,   σ² = mean of all the streams' variances

What it sees:
    The distance between the mean of a stream (over samples and elements) and the mean of the others' means, in
    standard deviations of a typical stream.

Why it matters:
    Streams on different levels are told apart by the bias alone: what a layer or a normaliser behind them sees first is
    which stream a value comes from. In a normaliser over the concatenation the difference of levels takes the variance
    that the signal should have.

When it is wrong:
    A BatchNorm per channel, or a bias learnt early, takes levels away; a LayerNorm over all streams does not. A stream
    of which single features lie far up and others far down has a mean of 0. It is symmetric for two streams.

Example:
    >>> a = torch.tensor([[0.0, 2.0], [2.0, 0.0]])            # mean 1, SD 1
    >>> reading = stream_shift(a, [a + 3], site=Site("head", "input", leaf="a"), step=1)
    >>> reading.value, reading.n
    (3.0, 2)

References:
    Ioffe & Szegedy 2015, "Batch normalization", section 2 (inputs of one distribution).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.core.errors import StatisticError
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.student import student_975

QUANTITY = Quantity("stream-shift", "stream shift", Unit.RATIO, "higher is worse", cost="one extra forward")


@torch.no_grad()
def stream_shift(stream: Tensor, others: Sequence[Tensor], *, site: Site, step: int) -> Reading | None:
    """Distance of a stream's mean from the others', in SD.

    Args:
        stream: samples first.
        others: the streams that it meets, each with as many samples.
        site: where.
        step: the step.

    Returns:
        The distance with a 95 % interval and a noise floor (both from the t distribution over the samples' differences;
        the SD is taken as known). `None` below two samples, without variance, or with values that are not finite.

    Raises:
        StatisticError: the streams have different numbers of samples, or there is no other.
    """
    if not others or any(len(each) != len(stream) for each in others):
        raise StatisticError(
            f"other streams of the same {len(stream)} samples",
            f"{[len(each) for each in others]} samples",
            "give what enters one addition or concatenation",
        )
    streams = [each.double().flatten(1) for each in (stream, *others)]
    samples = len(stream)
    if samples < 2 or not all(each.numel() for each in streams):
        return None
    variance = sum(float(each.var(correction=0)) for each in streams) / len(streams)
    if not math.isfinite(variance) or variance <= 0:
        return None
    means = [each.mean(1) for each in streams]
    differences = (means[0] - torch.stack(means[1:]).mean(0)) / math.sqrt(variance)
    value = abs(float(differences.mean()))
    half = student_975(samples - 1) * float(differences.std()) / math.sqrt(samples)
    return Reading(
        QUANTITY.name,
        site,
        step,
        value,
        QUANTITY.unit,
        samples,
        noise_floor=half,
        interval=(max(0.0, value - half), value + half),
    )
