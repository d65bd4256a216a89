"""Learning-rate sensitivity: what a wrong learning rate costs, on average over a range.

    E_η [ min(ℓ(η), ℓ₀) − ℓ* ],    η log-uniform over the grid, ℓ* the least ℓ(η)

What it sees:
    How much higher the final loss is than at the best rate of the grid, averaged over the grid; a training that
    diverged counts as one that learnt nothing, ℓ₀.

Why it matters:
    Of two models that reach the same loss at their best rates, the one that does so over a wider range is easier to
    train, and keeps training when it is made larger or the data change.

When it is wrong:
    It depends on the range: give both models the same one, three decades around the best rate in the literature. ℓ*
    is the least over the grid, which for a coarse grid or a noisy loss is not the best loss. The interval is over
    repeats (Student's t), each a sweep of its own with its own ℓ*; none with one repeat.

Example:
    >>> from holdfast.measures.learning_rate_sweep import sweep_learning_rates
    >>> sweep = sweep_learning_rates(lambda rate: abs(rate - 1.0), 3.0, low=0.5, high=2.0, points=3, refine=0)
    >>> learning_rate_sensitivity(sweep).value               # losses 0.5, 0 and 1
    0.5

References:
    Wortsman et al. 2023, "Small-scale proxies for large-scale transformer training instabilities", section 2.2.
"""

from __future__ import annotations

import math

import numpy as np

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.learning_rate_sweep import Sweep
from holdfast.measures.student import student_975

QUANTITY = Quantity(
    "learning-rate-sensitivity",
    "learning-rate sensitivity",
    Unit.LOSS,
    "higher is worse",
    cost="many forwards and backwards",
)


def learning_rate_sensitivity(sweep: Sweep, *, site: Site | None = None, step: int = 0) -> Reading | None:
    """Mean excess of the final loss over its least, over the grid.

    Args:
        sweep: from `sweep_learning_rates`; only the grid counts, not the rates that closed in on the edge.
        site: where to note it; the model's root when `None`.
        step: the step.

    Returns:
        The mean excess, with an interval from two repeats on; n the number of trainings on the grid. `None` where
        every training of a repeat diverged.
    """
    losses = np.array(sweep.losses)
    capped = np.minimum(np.where(np.isfinite(losses), losses, sweep.initial), sweep.initial)
    if bool((capped == sweep.initial).all(0).any()):
        return None
    excess = (capped - capped.min(0)).mean(0)
    value, interval = float(excess.mean()), None
    if len(excess) > 1:
        half = student_975(len(excess) - 1) * float(excess.std(ddof=1)) / math.sqrt(len(excess))
        interval = (max(0.0, value - half), value + half)
    where = site or Site("", "weight")
    return Reading(QUANTITY.name, where, step, value, QUANTITY.unit, losses.size, interval=interval)
