"""Dead units: the share of channels whose output is zero on every sample.

    fraction of channels with (exact zeros) = (finite values) > 0

What it sees:
    Units of a rectifier (ReLU and its like) that answered no sample and no position of what was observed.

Why it matters:
    A unit that is never active receives no gradient: it stays dead unless its inputs move. It is capacity paid for and
    not used.

When it is wrong:
    A unit that is active on a share p of inputs is zero on all of n samples with probability (1 − p)ⁿ: of those called
    dead on 64 samples, some may answer one input in twenty (n > 3/p is needed to tell). Merge statistics over a
    window before judging. A non-linearity that gives no exact zeros (GELU, leaky ReLU) has no dead units in this sense.
    The fraction of zeros is another figure.

Example:
    >>> import numpy as np
    >>> counts, zeros = np.array([64.0, 64.0, 64.0, 64.0]), np.array([64.0, 10.0, 63.0, 0.0])
    >>> channels = ChannelMoments(counts, np.zeros(4), np.zeros(4), zeros)
    >>> dead_units(channels, site=Site("relu", "output"), step=1).value
    0.25

References:
    Lu et al. 2019, "Dying ReLU and initialization: theory and numerical examples".
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.stats.channels import ChannelMoments

QUANTITY = Quantity("dead-units", "dead units", Unit.FRACTION, "higher is worse", (0.0, 1.0), "one pass over a sample")


def dead_units(current: ChannelMoments, *, site: Site, step: int, samples: int | None = None) -> Reading | None:
    """Fraction of channels that are zero throughout.

    Args:
        current: the output of a rectifier, of one step or merged over a window.
        site: where.
        step: the step.
        samples: how many samples the statistic holds; `None` gives as n the values of the channel with the fewest.

    Returns:
        The fraction, exact for what was observed. Channels without a finite value are left out; `None` when no
        channel is left.
    """
    seen = current.count > 0
    if not seen.any():
        return None
    value = float(current.dead[seen].mean())
    n = int(current.count[seen].min()) if samples is None else samples
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, n)
