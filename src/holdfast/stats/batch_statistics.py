"""`BatchStatistics`: what a batch normaliser takes from one batch, how uncertain that is, and its running averages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """The running averages of a batch normaliser, as they stood before the batch.

    Args:
        mean: of each channel.
        variance: of each channel.
        eps: added to every variance before its root is taken.
        noise: variance of the running mean in units of one batch mean's, m / (2 − m) for a running average that takes
            the share m of every batch; 1/t for the plain average of t batches.
    """

    mean: Float64[ndarray, channels]
    variance: Float64[ndarray, channels]
    eps: float
    noise: float


@dataclass(frozen=True, slots=True, eq=False)
class BatchStatistics:
    """Mean and variance of each channel over one batch, and their squared standard errors.

    A channel's values within a sample are not independent, so the sample is the unit: with mᵢ the mean of sample i,
    the squared error of the batch mean is s²(mᵢ)/n. That of the variance is the greater of s²(uᵢ)/n, where uᵢ is the
    sample's mean squared deviation, and of one from the variances within samples and from s²(mᵢ) as if the mᵢ were
    normal: the first is right for any distribution when n is large, the second for normal mᵢ when n is small.

    Args:
        samples: how many the layer normalises over (those of all ranks together).
        read: how many of them were read.
        mean: over samples and positions.
        spread: unbiased variance between single values of the population, (values' variance) + s²(mᵢ)/n.
        variance: as PyTorch keeps it, Σ (x − mean)² / (values − 1).
        mean_error: squared standard error of `mean`.
        variance_error: squared standard error of `variance`.
        running: the running averages; `None` where the layer keeps none.
        own: whether the layer normalises with this batch's statistics, and not with the running averages.
    """

    samples: int
    read: int
    mean: Float64[ndarray, channels]
    spread: Float64[ndarray, channels]
    variance: Float64[ndarray, channels]
    mean_error: Float64[ndarray, channels]
    variance_error: Float64[ndarray, channels]
    running: Running | None = None
    own: bool = True

    @property
    def channels(self) -> int:
        """How many channels."""
        return len(self.mean)

    @classmethod
    def of(
        cls,
        block: Float[Tensor, "read channels positions"],
        *,
        samples: int | None = None,
        running: Running | None = None,
        own: bool = True,
    ) -> BatchStatistics | None:
        """Read a batch.

        Args:
            block: `(samples, channels, positions)`, a part of what the layer normalises over.
            samples: how many samples that is in all; as many as the block's when `None`.
            running: the running averages before the batch.
            own: whether the layer normalises with the batch's statistics.

        Returns:
            The statistics; `None` for fewer than two samples (their scatter is the only unit of error), for an empty
            block, and where a value is not finite.

        Example:
            >>> batch = BatchStatistics.of(torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]]))
            >>> batch.mean.tolist(), batch.mean_error.tolist()  # sample means 2 and 6: s² = 8, over n = 2
            ([4.0], [4.0])
        """
        read, channels, positions = block.shape
        if read < 2 or not channels or not positions:
            return None
        values = block.detach().to("cpu", torch.float64).numpy()
        mean = values.mean((0, 2))
        if not np.isfinite(mean.sum()):
            return None
        deviation = values - mean[:, None]
        by_sample, square = deviation.mean(2), np.square(deviation).mean(2)
        return cls._from(mean, by_sample, square, positions, samples, running, own)

    @classmethod
    def from_samples(
        cls,
        means: Float64[ndarray, "samples channels"],
        variances: Float64[ndarray, "samples channels"],
        positions: int,
        *,
        samples: int | None = None,
        running: Running | None = None,
        own: bool = True,
    ) -> BatchStatistics | None:
        """The same from what the layer itself took of every sample.

        Args:
            means: of each channel of each sample.
            variances: biased, within the sample.
            positions: of a sample.
            samples: how many samples the layer normalises over; as many as there are means when `None`.
            running: the running averages before the batch.
            own: whether the layer normalises with the batch's statistics.

        Returns:
            The statistics; `None` for fewer than two samples, and where a value is not finite.

        Example:
            >>> batch = BatchStatistics.from_samples(np.array([[2.0], [6.0]]), np.array([[1.0], [1.0]]), 2)
            >>> batch.mean.tolist(), batch.mean_error.tolist()
            ([4.0], [4.0])
        """
        if len(means) < 2 or not means.size or not np.isfinite(means.sum() + variances.sum()):
            return None
        mean = means.mean(0)
        by_sample = means - mean
        return cls._from(mean, by_sample, variances + np.square(by_sample), positions, samples, running, own)

    @classmethod
    def _from(
        cls,
        mean: Float64[ndarray, channels],
        by_sample: Float64[ndarray, "samples channels"],
        square: Float64[ndarray, "samples channels"],
        positions: int,
        samples: int | None,
        running: Running | None,
        own: bool,
    ) -> BatchStatistics:
        """From each sample's mean deviation and mean squared deviation."""
        read = len(by_sample)
        between = np.square(by_sample).sum(0) / (read - 1)
        biased = square.mean(0)
        within = (square - np.square(by_sample)).var(0, ddof=1) / read
        # The values' variance holds (n − 1)/n of the sample means' one, whose squared error is 2 σ⁴/(n − 1) for normal
        # means; s⁴ exceeds σ⁴ by (n + 1)/(n − 1) on average.
        normal = within + ((read - 1) / read) ** 2 * 2 * between**2 / (read + 1)
        unbiased = read * positions / (read * positions - 1)
        return cls(
            read if samples is None else samples,
            read,
            mean,
            biased + between / read,
            unbiased * biased,
            between / read,
            unbiased**2 * np.maximum(square.var(0, ddof=1) / read, normal),
            running,
            own,
        )

    @property
    def shift(self) -> Float64[ndarray, channels]:
        """δ = (mean − running mean) / running SD, of every channel."""
        running = self._running
        return (self.mean - running.mean) / np.sqrt(running.variance + running.eps)

    @property
    def stretch(self) -> Float64[ndarray, channels]:
        """ρ = variance / running variance − 1, of every channel; its expectation is 0 where the two agree."""
        running = self._running
        return (self.variance + running.eps) / (running.variance + running.eps) - 1

    @property
    def shift_error(self) -> Float64[ndarray, channels]:
        """Squared standard error of `shift` by the batch alone."""
        return self.mean_error / self._unit

    @property
    def stretch_error(self) -> Float64[ndarray, channels]:
        """Squared standard error of `stretch` by the batch alone."""
        return self.variance_error / self._unit**2

    @property
    def _unit(self) -> Float64[ndarray, channels]:
        """The lesser variance: a batch that scatters little by chance knows little of its errors."""
        running = self._running
        return np.maximum(np.minimum(running.variance, self.variance) + running.eps, np.finfo(np.float64).tiny)

    @property
    def _running(self) -> Running:
        assert self.running is not None, "the layer keeps running averages"
        return self.running


def functional_square(
    shift: Float64[ndarray, channels], stretch: Float64[ndarray, channels]
) -> Float64[ndarray, channels]:
    """Mean squared difference of the outputs normalised with either statistics, where these differ by δ and ρ.

    With a = √(1 + ρ) the ratio of the SDs and x̂ = (x − mean)/SD the output in training, the output in evaluation is
    a·x̂ + δ, and the mean of ((a − 1)·x̂ + δ)² is (a − 1)² + δ², with a − 1 = ρ / (1 + a).

    Args:
        shift: δ.
        stretch: ρ, not below −1.

    Returns:
        (a − 1)² + δ², in squared SD of the output before the layer's gain.

    Example:
        >>> functional_square(np.array([0.5]), np.array([3.0])).tolist()  # a = 2: 1² + 0.5²
        [1.25]
    """
    return np.square(shift) + np.square(stretch) * scale_weight(stretch)


def scale_weight(stretch: Float64[ndarray, channels]) -> Float64[ndarray, channels]:
    """1 / (1 + √(1 + ρ))²: from a squared difference of variances to one of SDs.

    Args:
        stretch: ρ; below −1 by rounding counts as −1.

    Returns:
        The factor, ¼ where the variances agree.
    """
    return np.square(1 / (1 + np.sqrt(np.maximum(1 + stretch, 0.0))))
