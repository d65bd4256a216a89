"""Stream RMS: how large a stream is where it meets others.

    RMS = √(mean of x² over samples and elements)

What it sees:
    The size of each stream that enters an addition or a concatenation, in its own unit.

Why it matters:
    Of two streams added, the one that is r times smaller brings 1/(1 + r²) of the variance: 1 % at r = 10. Its layers
    get as little of the say and, behind a linear layer, of the gradient.

When it is wrong:
    A layer with large weights for the smaller stream makes up for it (see stream-share). A large mean makes a stream
    large that hardly varies (see stream-shift). Unequal may be meant: a correction added to a main signal.

Example:
    >>> reading = stream_rms(torch.tensor([[3.0, 4.0], [4.0, 3.0]]), site=Site("head", "input", leaf="a"), step=1)
    >>> round(reading.value, 4), reading.n
    (3.5355, 2)

References:
    Wang, Tran & Feiszli 2019, "What makes training multi-modal classification networks hard?".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.student import student_975

QUANTITY = Quantity("stream-rms", "stream RMS", Unit.ACTIVATION, "neither", cost="one extra forward", logarithmic=True)


@torch.no_grad()
def stream_rms(stream: Tensor, *, site: Site, step: int) -> Reading | None:
    """Root mean square of a stream.

    Args:
        stream: samples first.
        site: where.
        step: the step.

    Returns:
        The root, with a 95 % interval (t, over the samples' mean squares) from two samples on; `None` without data or
        with values that are not finite.
    """
    squares = stream.double().square().flatten(1).mean(1)
    samples = len(squares)
    if not stream.numel() or not bool(squares.isfinite().all()):
        return None
    mean = float(squares.mean())
    interval = None
    if samples > 1:
        half = student_975(samples - 1) * float(squares.std()) / math.sqrt(samples)
        interval = math.sqrt(max(0.0, mean - half)), math.sqrt(mean + half)
    return Reading(QUANTITY.name, site, step, math.sqrt(mean), QUANTITY.unit, samples, interval=interval)
