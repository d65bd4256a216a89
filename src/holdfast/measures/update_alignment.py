"""Update alignment: whether a step goes down the gradient of its own batch.

    cos(ΔW, −g)

What it sees:
    The cosine between the real change of a parameter over one optimiser step and the negative gradient that this step
    was given. 1 is plain gradient descent; momentum, adaptive scaling and weight decay turn it away.

Why it matters:
    Near zero the step is made of old gradients or of decay: this batch hardly moves the parameter. Below zero the step
    climbs the loss of the batch it was computed on, as momentum does when it overshoots.

When it is wrong:
    A batch's gradient is itself noise around the true one: a small cosine under momentum is the averaging at work, not
    a fault. For Adam a cosine well below 1 is usual, since every element is rescaled. The floor is the 97.5th
    percentile of a random direction in as many dimensions: within ± that, the cosine is not told from chance. Gradients
    must still be those of the step: where they were cleared or accumulated on since, there is no figure or a wrong
    one.

Example:
    >>> import torch
    >>> g = torch.tensor([3.0, 4.0, 0.0])
    >>> reading = update_alignment(-0.1 * g, g, site=Site("fc", "update", leaf="weight"), step=1)
    >>> round(reading.value, 6), round(reading.noise_floor, 3)
    (1.0, 0.95)

References:
    Polyak 1964, "Some methods of speeding up the convergence of iteration methods". Kingma & Ba 2015, "Adam".
"""

from __future__ import annotations

import torch
from torch import Tensor

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.units import Unit
from holdfast.live.moment import Moment
from holdfast.measures.direction import chance_cosine, cosine
from holdfast.measures.weights import weight_site, weights_of

QUANTITY = Quantity("update-alignment", "update along −gradient", Unit.COSINE, "neither", (-1.0, 1.0))


@torch.no_grad()
def update_alignment(update: Tensor, gradient: Tensor, *, site: Site, step: int) -> Reading | None:
    """Cosine between an update and the negative gradient.

    Args:
        update: W after the step − W before.
        gradient: that the step was given.
        site: where.
        step: the step.

    Returns:
        The cosine, with chance's 97.5th percentile as its floor; `None` where one of the two is zero or not finite.

    Raises:
        InputError: the shapes differ.
    """
    value = cosine(update, gradient, "an update and a gradient")
    if value is None:
        return None
    n = update.numel()
    return Reading(QUANTITY.name, site, step, -value, QUANTITY.unit, n, noise_floor=chance_cosine(n), lag=1)


def take(moment: Moment) -> list[Reading]:
    """Alignment of the step just done, of every parameter whose gradient is still there.

    Args:
        moment: with the parameters before the step.

    Returns:
        One reading a parameter that moved and has a gradient.
    """
    return [
        reading
        for name, before, now in weights_of(moment)
        if before is not None and now.grad is not None and not now.grad.is_sparse and now.numel()
        for reading in [
            update_alignment(
                now.detach().double() - before.double(),
                now.grad,
                site=weight_site(name, "update", moment.stream),
                step=moment.step,
            )
        ]
        if reading is not None
    ]
