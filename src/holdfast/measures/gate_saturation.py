"""Gate saturation: how often a gate is as good as closed or as good as open.

    fraction of finite z with |z| > 4.357, g = sigmoid(z): g < 0.0127 or g > 0.9873

What it sees:
    The share of values at which a gate passes back less than 5 % of its greatest slope: of every gate of `nn.LSTM`,
    `nn.GRU` and their cells, computed again from weights, inputs and states, and of every sigmoid that another signal
    is multiplied with (cells written by hand, squeeze-and-excitation, gated linear units). A table beside it tells
    closed from open.

Why it matters:
    A gate is allowed to saturate: an open forget gate is how a cell remembers. But a gate that is shut or open on every
    sample has stopped choosing, and its weights no longer learn. That is why this is not counted as saturated.

When it is wrong:
    High is not bad by itself: look at where it comes from, at its change, and at which end. What a sigmoid is for is
    told from what its result is multiplied with; a sigmoid times a mask counts as a gate. The dropout masks between
    recurrent layers are drawn again only on a CPU; where the output is not reproduced the layer is left out. The
    interval takes sequences as independent and, within one, anything.

Example:
    >>> from holdfast.stats.observation import observe
    >>> import torch
    >>> seen = observe(torch.tensor([-5.0, 0.0, 1.0, 5.0]).view(4, 1, 1), threshold=4.357)
    >>> gate_saturation(seen.summary, site=Site("lstm", "output", leaf="l0.forget"), step=1, samples=4).value
    0.5

References:
    Karpathy, Johnson & Fei-Fei 2015, "Visualizing and understanding recurrent networks", section 4.2.
    Gu et al. 2020, "Improving the gating mechanism of recurrent neural networks".
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.wilson import wilson
from holdfast.stats.summary import Summary

QUANTITY = Quantity("gate-saturation", "gates saturated", Unit.FRACTION, "neither", (0.0, 1.0), "one extra forward")


def gate_saturation(current: Summary, *, site: Site, step: int, samples: int) -> Reading | None:
    """Fraction of a gate's finite inputs beyond the threshold that the summary was made with.

    Args:
        current: what the gate's sigmoid takes.
        site: where.
        step: the step.
        samples: how many sequences it holds.

    Returns:
        The fraction with a 95 % interval (Wilson's); `None` when no value is finite.
    """
    counts = current.counts
    if not counts.finite or not samples:
        return None
    value = counts.beyond_fraction
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, samples, interval=wilson(value, samples))
