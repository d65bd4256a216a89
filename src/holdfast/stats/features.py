"""`Features`: what one site said about each sample of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

COLLAPSED_BELOW = 1e-6
"""A channel whose SD is below this fraction of the site's rms carries rounding, not signal (float32's step is
6e-8 of a value, and sums of some hundred terms lose another digit)."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The value of every feature for every sample, with the scale of each feature.

    Args:
        values: mean over positions, `(samples, channels)`; NaN where a sample has no finite value.
        sd: SD over samples and positions of each channel (divided by n); NaN without data.
        mean: over samples and positions.
        rms: root mean square of the whole site.
        positions: how many values of a sample a feature's figures come from.

    Example:
        >>> import torch
        >>> features = Features(torch.zeros(4, 2), torch.tensor([0.0, 1.0]).double(), torch.zeros(2).double(), 0.7)
        >>> features.samples, features.collapsed.tolist()
        (4, [True, False])
    """

    values: Float32[Tensor, "samples channels"]
    sd: Float64[Tensor, channels]
    mean: Float64[Tensor, channels]
    rms: float
    positions: int = 1

    @classmethod
    def of(cls, block: Float[Tensor, "samples channels positions"]) -> Features:
        """Of a block, by plain PyTorch whatever its memory: equal blocks give equal figures, to the last bit.

        Args:
            block: `(samples, channels, positions)`; values that are not finite are left out.

        Returns:
            The features, on the block's device.

        Example:
            >>> features = Features.of(torch.tensor([[[1.0, 3.0]], [[0.0, 4.0]]]))
            >>> features.values.tolist(), features.mean.tolist(), round(features.sd.item(), 3)
            ([[2.0], [2.0]], [2.0], 1.581)
        """
        x = block.detach().double()
        if x.numel() and math.isfinite(float(x.sum())):  # so no value is NaN or infinite: a quarter of the time
            variance, mean = torch.var_mean(x, (0, 2), correction=0)
            values = x.mean(2) if x.shape[2] > 1 else x[:, :, 0]
            return cls(values.float(), variance.sqrt_(), mean, float(x.square().mean().sqrt()), x.shape[2])
        x = torch.where(x.isfinite(), x, torch.nan)
        mean = x.nanmean((0, 2))
        sd = (x - mean[:, None]).square_().nanmean((0, 2)).sqrt_()
        return cls(x.nanmean(2).float(), sd, mean, float(x.square().nanmean().sqrt()), x.shape[2])

    @property
    def samples(self) -> int:
        """How many samples."""
        return self.values.shape[0]

    @property
    def channels(self) -> int:
        """How many features."""
        return self.values.shape[1]

    @property
    def collapsed(self) -> Bool[Tensor, channels]:
        """Where the SD is zero, not finite, or below 1e-6 of the site's rms: no unit to measure a shift in."""
        usable = self.sd.isfinite() & (self.sd > 0) & (self.sd >= COLLAPSED_BELOW * self.rms)
        return ~usable
