"""Stream gradient: how much of a fused layer's gradient is due to one of its streams.

    share_s = ⟨G_s, G⟩ / ‖G‖²,   G = ∂L/∂W = Σ_s G_s

What it sees:
    A linear layer's weight gradient is the gradient at its output times its input; the input is the sum of the streams,
    each in its place, so that each has its part G_s. Behind a concatenation these are blocks of W, and the share is
    ‖G_s‖²/‖G‖². The shares of a fusion add up to 1.

Why it matters:
    Under plain gradient descent it is the share of the layer's learning that a stream gets: with streams of unequal
    size the layer learns to use the large one, whether or not it tells more. Adam and its like rescale each weight and
    so even this out behind a concatenation, not behind an addition.

When it is wrong:
    It is one batch's gradient, without an interval. Behind an addition all streams have the same weights: a share below
    0 pulls them the other way. It says nothing on what the streams' own layers learn: ∂L/∂x_s behind an addition is the
    same for all.

Example:
    >>> parts = [torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    >>> sites = [Site("head", "weight_grad", leaf=k) for k in "ab"]
    >>> [reading.value for reading in stream_gradient(parts, sites=sites, step=1, n=64)]
    [0.9, 0.1]

References:
    Wang, Tran & Feiszli 2019, "What makes training multi-modal classification networks hard?".
    Peng et al. 2022, "Balanced multimodal learning via on-the-fly gradient modulation".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit

QUANTITY = Quantity(
    "stream-gradient",
    "share of gradient",
    Unit.FRACTION,
    "neither",
    (-math.inf, math.inf),
    "one extra forward and backward",
)


@torch.no_grad()
def stream_gradient(gradients: Sequence[Tensor], *, sites: Sequence[Site], step: int, n: int) -> list[Reading]:
    """Shares of streams in the gradient of the layer that takes them.

    Args:
        gradients: what each stream brings to the gradient of the layer's weight, all of its shape.
        sites: where, one a stream.
        step: the step.
        n: how many samples the gradient is of.

    Returns:
        One reading a stream; none where no gradient arrives, or one that is not finite.
    """
    parts = [each.double().flatten() for each in gradients]
    if not parts:
        return []
    whole = torch.stack(parts).sum(0)
    total = float(whole @ whole)
    if not math.isfinite(total) or total <= 0:
        return []
    return [
        Reading(QUANTITY.name, site, step, float(part @ whole) / total, QUANTITY.unit, n)
        for site, part in zip(sites, parts, strict=True)
    ]
