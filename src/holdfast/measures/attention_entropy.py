"""Attention entropy: over how many of its keys a query spreads, as a share of the most that is possible.

    H = −Σ_k p_k ln p_k / ln m, mean over rows; p the probabilities of one query and head, m its allowed keys

What it sees:
    1 when every query looks at all keys alike, 0 when each looks at one. Divided by ln m, so that lengths and causal
    masks compare: without it the first queries under a causal mask would lower the mean.

Why it matters:
    Entropy that falls towards 0 in training (collapse) comes before unstable losses; entropy that stays at 1 is a layer
    that averages and does not choose.

When it is wrong:
    Low entropy is right for a head that copies. It is a mean over rows: half of them uniform and half of them one-hot
    read as 0.5. Queries without a choice and padded queries of a self-attention are left out; of long sequences a
    random part is read (see attention-saturation).

Example:
    >>> import torch
    >>> from holdfast.live.attention import Attended
    >>> rows = torch.tensor([[[1.0, 0.5]], [[0.5, 0.0]]])
    >>> reading = attention_entropy(Attended(Site("block", "output", leaf="scores"), rows, rows, 2), step=1)
    >>> reading.value, reading.n
    (0.5, 2)

References:
    Zhai et al. 2023, "Stabilizing transformer training by preventing attention entropy collapse".
"""

from __future__ import annotations

import math

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.live.attention import Attended
from holdfast.measures.student import student_975

QUANTITY = Quantity(
    "attention-entropy", "attention entropy", Unit.FRACTION, "lower is worse", (0.0, 1.0), "one extra forward"
)


def attention_entropy(attended: Attended, *, step: int, site: Site | None = None) -> Reading | None:
    """Mean entropy of the rows over the greatest possible, over all heads.

    Args:
        attended: of one attention.
        step: the step.
        site: where; `None` takes the attention's.

    Returns:
        The mean of the samples' means with a 95 % interval (t, over samples), n the number of samples; no interval of
        one sample. `None` when no row has a choice.
    """
    means = attended.entropy.flatten(1).double().nanmean(1)
    means = means[means.isfinite()]
    samples = len(means)
    if not samples:
        return None
    value = min(max(float(means.mean()), 0.0), 1.0)
    interval = None
    if samples > 1:
        half = student_975(samples - 1) * float(means.std()) / math.sqrt(samples)
        interval = max(0.0, value - half), min(1.0, value + half)
    where = attended.site if site is None else site
    return Reading(QUANTITY.name, where, step, value, QUANTITY.unit, samples, interval=interval)
