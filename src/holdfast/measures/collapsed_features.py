"""Collapsed features: the share of a site's features that hardly vary.

    fraction of features with σ_j = 0, not finite, or σ_j < 1e-6 · rms of the site

What it sees:
    Features that take one value on every sample (and position), or none that is finite: dead units, a saturated
    layer, a vanished signal.

Why it matters:
    They carry no information, and have no SD to measure a shift in: shift figures leave them out, and with more than
    half of them collapsed a site has no shift figure at all. This one says so.

When it is wrong:
    On few samples a sparse feature may be constant by chance: one that is active on a share p of the inputs is
    constant on n samples with probability (1 − p)ⁿ. A lone value never varies: with fewer than 8 values a feature
    (samples × positions) there is no reading. The bound 1e-6 is float32's rounding; in half precision a feature
    may be rounding noise well above it.

Example:
    >>> import torch
    >>> sd = torch.tensor([0.0, 1.0, 1.0, 1e-9]).double()
    >>> batch = Features(torch.zeros(8, 4), sd, torch.zeros(4).double(), 1.0)
    >>> collapsed_features(batch, site=Site("fc", "input"), step=1).value
    0.5

References:
    Daneshmand et al. 2020, "Batch normalization provably avoids ranks collapse for randomly initialised deep networks".
"""

from __future__ import annotations

import torch

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.signal_spread import LEAST_VALUES
from holdfast.stats.features import Features

QUANTITY = Quantity(
    "collapsed-features", "collapsed features", Unit.FRACTION, "higher is worse", (0.0, 1.0), "one pass over a sample"
)


@torch.no_grad()
def collapsed_features(current: Features, *, site: Site, step: int) -> Reading | None:
    """Fraction of a site's features that hardly vary.

    Args:
        current: the site, values `(samples, channels)`.
        site: where.
        step: the step.

    Returns:
        The fraction, exact for these samples; `None` without features, or with too few values of each to tell whether
        they vary.
    """
    if not current.channels or current.samples * current.positions < LEAST_VALUES:
        return None
    value = float(current.collapsed.double().mean())
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, current.samples)
