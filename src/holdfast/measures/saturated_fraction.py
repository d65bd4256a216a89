"""Saturated fraction: the share of pre-activations at which the non-linearity is flat.

    fraction of finite z with |z| > threshold: g′(z) below 5 % of its maximum
    (sigmoid: |z| > 4.357, tanh: |z| > 2.178, dynamic tanh: |αx| > 2.178)

What it sees:
    How much of a layer's input to a saturating non-linearity lies on its flat ends. The threshold is the caller's
    (it depends on the function) and was applied when the summary was made.

Why it matters:
    Where the slope is below a twentieth of its maximum, the gradient through that unit is too: the layers before it
    hardly learn from that sample.

When it is wrong:
    Gates of recurrent cells and softmax outputs are allowed to saturate and have measures of their own
    (gate-saturation, attention-saturation). A unit may be saturated on most samples and useful on the others. The
    interval takes samples as independent and, within a sample, anything: a share within a sample lies between 0 and 1
    and varies at most as one coin toss would, so that it is too wide rather than too narrow where units saturate
    independently.

Example:
    >>> summary = Summary.empty()
    >>> saturated_fraction(summary, site=Site("act", "input"), step=1) is None
    True
    >>> from dataclasses import replace
    >>> from holdfast.stats.counts import Counts
    >>> summary = replace(summary, counts=Counts(total=200, zeros=0, nan=0, positive_inf=0, negative_inf=0, beyond=50))
    >>> saturated_fraction(summary, site=Site("act", "input"), step=1).value
    0.25

References:
    Glorot & Bengio 2010, "Understanding the difficulty of training deep feedforward neural networks", section 3.
    Zhu et al. 2025, "Transformers without normalization" (dynamic tanh).
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.wilson import wilson
from holdfast.stats.summary import Summary

QUANTITY = Quantity(
    "saturated-fraction", "saturated", Unit.FRACTION, "higher is worse", (0.0, 1.0), "one pass over a sample"
)


def saturated_fraction(current: Summary, *, site: Site, step: int, samples: int | None = None) -> Reading | None:
    """Fraction of finite values beyond the threshold that the summary was made with.

    Args:
        current: the input of a saturating non-linearity, observed with that non-linearity's threshold.
        site: where.
        step: the step.
        samples: how many samples the summary holds; gives the interval, and n.

    Returns:
        The fraction; with `samples` a 95 % interval (Wilson's, for the whole population of samples), without it n is
        the number of values. `None` when no value is finite.
    """
    counts = current.counts
    if not counts.finite:
        return None
    value = counts.beyond_fraction
    return Reading(
        QUANTITY.name,
        site,
        step,
        value,
        QUANTITY.unit,
        samples or counts.finite,
        interval=wilson(value, samples) if samples else None,
    )
