"""Batch noise: how far the mean that a batch normaliser subtracts scatters from batch to batch.

    noise = √ ( Σ_j s²_j / n  /  Σ_j σ_j² )        n_eff = 1 / noise²

What it sees:
    With m_ij the mean of channel j over the positions of sample i and s²_j its variance over the samples of the
    batch, s²_j / n is the squared standard error of the batch mean; σ_j² is the unbiased variance between single values
    of the channel, (their variance in the batch) + s²_j / n. So correlated positions count for what they are worth:
    between 1/√(n · positions), all independent, and 1/√n, all alike. n_eff is how many independent values would give
    as noisy a mean. The variance that the layer divides by is as uncertain: its relative noise is √(2/n_eff) for
    normal values.

Why it matters:
    A batch normaliser adds this noise to everything it hands on, layer after layer, and the running averages used in
    evaluation know nothing of it. Some of it regularises; at a few effective values a statistic it drowns the signal.

When it is wrong:
    It takes the samples of a batch as independent: frames of one clip, or tokens flattened into samples, are not, and
    the true noise is greater. One sample gives no reading. Of large inputs 16 channels of 16 samples are read at least;
    positions left out raise the figure to at most √(noise² + 1/(n · positions read)). The interval is from the scatter
    over channels, taken as independent. In a synchronised normaliser the samples of all ranks count.

Example:
    >>> import torch
    >>> pair = torch.tensor([[[-1.0]], [[1.0]]])  # two samples, one position: n_eff = 2
    >>> reading = batch_noise(BatchStatistics.of(pair), site=Site("norm", "input"), step=1)
    >>> round(reading.value, 6), reading.n
    (0.707107, 2)

References:
    Wu & He 2018, "Group normalization" (the error of batch normalisation by batch size). Kish 1965, "Survey sampling"
    (effective sample size of clusters).
"""

from __future__ import annotations

import math

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.student import student_975
from holdfast.stats.batch_statistics import BatchStatistics

QUANTITY = Quantity(
    "batch-noise",
    "noise of the batch mean",
    Unit.REFERENCE_SD,
    "higher is worse",
    (0.0, 1.0),
    "one pass over a sample",
    logarithmic=True,
)


def batch_noise(current: BatchStatistics, *, site: Site, step: int) -> Reading | None:
    """Standard error of the batch mean, in SD of the channel.

    Args:
        current: the batch as the layer saw it.
        site: where.
        step: the step.

    Returns:
        Value and 95 % interval; n is the number of samples. `None` where the layer does not normalise with the batch,
        or no channel varies.
    """
    varies = current.spread > 0
    if not current.own or not varies.any():
        return None
    # What was read may be a part of the batch: the error is that of the whole.
    errors = current.read / current.samples * current.mean_error[varies]
    spread = current.spread[varies]
    # One ratio of sums: the mean of the channels' ratios is too small on a few samples.
    square = float(errors.sum() / spread.sum())
    if not math.isfinite(square):
        return None
    value = min(math.sqrt(square), 1.0)
    interval = None
    if len(errors) > 1 and square > 0:
        residual = (errors - square * spread) / errors.mean()
        relative = float(residual.std(ddof=1)) / math.sqrt(len(errors))
        # Symmetric in the logarithm: a variance cannot be negative and its estimate is skewed.
        factor = math.exp(min(student_975(len(errors) - 1) * relative / 2, 700.0))
        interval = (value / factor, min(value * factor, 1.0))
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, current.samples, interval=interval)
