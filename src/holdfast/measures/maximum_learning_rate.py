"""Maximum stable learning rate: the highest at which training, tried, does not diverge.

    sup { η on the grid : no training at η or below ended above ℓ₀, or not finite }

What it sees:
    Final losses of the same training at many learning rates: where the first divergence is, bisected on a logarithmic
    scale. The interval goes from the highest rate that was stable to the lowest that diverged.

Why it matters:
    What normalisers, initialisation and warm-up are said to buy is a higher stable rate: this is it, by trial.

When it is wrong:
    Divergence has a definition here: a final loss above the initial one, or not finite, in any repeat. Longer
    training diverges at lower rates. Between two grid points that are stable there may be one that is not; the value
    is only as good as the grid. A single repeat says nothing of luck: near the edge repeats differ. A high rate that
    is stable need not be a good one: see learning-rate-sensitivity.

Example:
    >>> from holdfast.measures.learning_rate_sweep import sweep_learning_rates
    >>> sweep = sweep_learning_rates(lambda rate: (1 - rate) ** 20, 1.0, low=0.25, high=4.0, points=5, refine=8)
    >>> reading = maximum_learning_rate(sweep)               # descent on a parabola of curvature 1: 2
    >>> reading.value, reading.interval[1] < 2.01
    (2.0, True)

References:
    Bjorck et al. 2018, "Understanding batch normalization" (normalisers enable larger learning rates).
    Wortsman et al. 2023, "Small-scale proxies for large-scale transformer training instabilities".
"""

from __future__ import annotations

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.learning_rate_sweep import Sweep

QUANTITY = Quantity(
    "maximum-learning-rate",
    "maximum stable learning rate",
    Unit.LEARNING_RATE,
    "lower is worse",
    cost="many forwards and backwards",
    logarithmic=True,
)


def maximum_learning_rate(sweep: Sweep, *, site: Site | None = None, step: int = 0) -> Reading | None:
    """The highest rate below the first divergence.

    Args:
        sweep: from `sweep_learning_rates`.
        site: where to note it; the model's root when `None`.
        step: the step.

    Returns:
        The rate; its interval ends at the lowest rate that diverged, infinite where none did; n the number of
        trainings. `None` where the lowest rate diverged already.
    """
    stable, diverged = sweep.edge
    if not stable:
        return None
    where = site or Site("", "weight")
    return Reading(QUANTITY.name, where, step, stable, QUANTITY.unit, sweep.trainings, interval=(stable, diverged))
