"""Curvature spread: the largest curvature over the size of a typical one.

    λ_max / |λ|_q,    |λ|_q the q-th quantile of the sizes of all eigenvalues; q = 0.9 unless said otherwise

What it sees:
    How many times steeper the steepest direction is than one that all but a tenth of the directions fall short of.

Why it matters:
    A single learning rate must be small enough for the steepest direction; the others then move slowly. What is
    called an ill-conditioned loss is this. An indefinite Hessian has no condition number: the ratio of largest to
    smallest eigenvalue means nothing where one is negative and many are nearly zero.

When it is wrong:
    q decides: say it beside the figure. Half of a network's eigenvalues and more are nearly zero, so that low
    quantiles are rounding; then there is no figure. Quadrature resolves the bulk near zero coarsely: with few steps
    the quantile is that of a smeared spectrum. The interval is over probes only (Student's t on ln |λ|_q).

Example:
    >>> import torch
    >>> from holdfast.measures.spectral_density import spectral_density
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])             # H = diag(4, 1)
    >>> density = spectral_density(layer, torch.nn.functional.mse_loss, (x, torch.zeros(2, 1)))
    >>> round(curvature_spread(density, q=0.5).value, 3)
    4.0

References:
    Ghorbani, Krishnan & Xiao 2019, "An investigation into neural net optimization via Hessian eigenvalue density".
    Sagun et al. 2018, "Empirical analysis of the Hessian of over-parametrized neural networks".
"""

from __future__ import annotations

import math

import numpy as np

from holdfast.core.errors import InputError
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.measures.spectral_density import SpectralDensity, over_probes

QUANTITY = Quantity(
    "curvature-spread",
    "largest curvature over a typical one",
    Unit.RATIO,
    "higher is worse",
    cost="many forwards and backwards",
    logarithmic=True,
)


def curvature_spread(
    density: SpectralDensity, *, q: float = 0.9, site: Site | None = None, step: int | None = None
) -> Reading | None:
    """Largest eigenvalue over the q-th quantile of sizes.

    Args:
        density: from `spectral_density`.
        q: above 0 and below 1.
        site: where to note it; the model's root when `None`.
        step: the step; the density's when `None`.

    Returns:
        The ratio with a 95 % interval; `None` where the largest eigenvalue is not positive or the quantile is
        rounding.

    Raises:
        InputError: q is no quantile.
    """
    if not 0 < q < 1:
        raise InputError("a quantile above 0 and below 1", f"{q:g}", "type: q=0.9")
    sizes = density.quantile(q)
    if density.largest <= density.rounding or sizes.min() <= density.rounding:
        return None
    middle, (low, high) = over_probes(np.log(density.largest / sizes).tolist())
    return Reading(
        QUANTITY.name,
        site or Site("", "weight"),
        density.step if step is None else step,
        math.exp(middle),
        QUANTITY.unit,
        density.n,
        interval=(math.exp(low), math.exp(high)),
    )
