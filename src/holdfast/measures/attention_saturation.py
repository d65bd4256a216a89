"""Attention saturation: how often a query looks at one key only.

    fraction of rows with max_k p_k > 0.99, p the probabilities of one query and head over the keys

What it sees:
    Of every attention (fused, `nn.MultiheadAttention`, or a softmax written by hand whose result is multiplied with
    something) the share of queries whose largest probability is above 0.99. Where attention is one operation, scores
    are computed again from its queries, keys, mask and scale.

Why it matters:
    There softmax has a slope of less than p(1 − p) = 0.01, a twenty-fifth of its greatest: queries and keys learn next
    to nothing from that row. Logits that grow without bound end here, often shortly before a spike of the loss.

When it is wrong:
    Heads that look at one place (the previous token, the first one) do so on purpose: it is the growth over training
    that tells. Queries without a choice (one allowed key, as at the start under a causal mask) and padded queries of a
    self-attention are left out. Where there are more than 2²¹ scores, queries are drawn at random by a private
    generator, all samples first. The interval takes samples as independent and, within one, anything.

Example:
    >>> import torch
    >>> from holdfast.live.attention import Attended
    >>> rows = torch.tensor([[[0.5, 0.999]], [[0.6, 0.4]]])
    >>> attended = Attended(Site("block", "output", leaf="scores"), rows, rows, 2)
    >>> attention_saturation(attended, step=1).value
    0.25

References:
    Zhai et al. 2023, "Stabilizing transformer training by preventing attention entropy collapse".
    Dehghani et al. 2023, "Scaling vision transformers to 22 billion parameters", section 2 (growing logits).
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.live.attention import Attended
from holdfast.measures.wilson import wilson

QUANTITY = Quantity(
    "attention-saturation", "attention saturated", Unit.FRACTION, "higher is worse", (0.0, 1.0), "one extra forward"
)

LARGEST = 0.99
"""Probability above which a row counts as saturated."""


def attention_saturation(attended: Attended, *, step: int, site: Site | None = None) -> Reading | None:
    """Share of rows whose largest probability is above 0.99, over all heads.

    Args:
        attended: of one attention.
        step: the step.
        site: where; `None` takes the attention's.

    Returns:
        The share with a 95 % interval (Wilson's), n the number of samples; `None` when no row has a choice.
    """
    largest = attended.largest.flatten(1)
    rows = largest.isfinite()
    samples = int(rows.any(1).sum())
    if not samples:
        return None
    value = float((largest > LARGEST).sum() / rows.sum())
    where = attended.site if site is None else site
    return Reading(QUANTITY.name, where, step, value, QUANTITY.unit, samples, interval=wilson(value, samples))
