"""Radial gradient: how much of a weight's gradient points along the weight itself.

    cos(w, ∇_w L)

What it sees:
    The cosine between a weight and its gradient. Where the loss does not depend on the weight's length, w · ∇_w L = 0
    (Euler's theorem for functions of degree 0): in front of a normaliser it is zero but for rounding and ε.

Why it matters:
    It is the test whether a weight is scale-invariant, without reading the model's code: only then do effective rate
    and rotation say how fast the layer learns, and only decay can shrink the weight.

When it is wrong:
    A random gradient in n dimensions has a cosine of the order 1/√n by chance: the floor is the 97.5th percentile of
    that, and below it a figure of one step proves nothing. A normaliser gives 1e-4 and less, step after step; with ε
    not small beside the variance it gives more. Weight decay inside the loss is in the gradient; that of the optimiser
    is not.

Example:
    >>> import torch
    >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> (w[0] / w.norm()).backward()                                    # depends on the direction alone
    >>> abs(radial_gradient(w.detach(), w.grad, site=Site("fc", "weight_grad", leaf="weight"), step=1).value) < 1e-6
    True

References:
    van Laarhoven 2017, "L2 regularization versus batch and weight normalization", section 2.
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

QUANTITY = Quantity("radial-gradient", "gradient along the weight", Unit.COSINE, "neither", (-1.0, 1.0))


@torch.no_grad()
def radial_gradient(weight: Tensor, gradient: Tensor, *, site: Site, step: int) -> Reading | None:
    """Cosine between a weight and its gradient.

    Args:
        weight: at which the gradient was taken.
        gradient: of the loss by the weight.
        site: where.
        step: the step.

    Returns:
        The cosine, with chance's 97.5th percentile as its floor; `None` where one of the two is zero or not finite.

    Raises:
        InputError: the shapes differ.
    """
    value = cosine(weight, gradient, "a weight and its gradient")
    if value is None:
        return None
    n = weight.numel()
    return Reading(QUANTITY.name, site, step, value, QUANTITY.unit, n, noise_floor=chance_cosine(n))


def take(moment: Moment) -> list[Reading]:
    """Of every weight of two or more dimensions whose gradient is still there.

    Args:
        moment: with the parameters before the step, at which the gradients were taken.

    Returns:
        One reading a weight with a gradient that is not zero.
    """
    return [
        reading
        for name, before, now in weights_of(moment)
        if before is not None and now.ndim >= 2 and now.numel() and now.grad is not None and not now.grad.is_sparse
        for reading in [
            radial_gradient(before, now.grad, site=weight_site(name, "weight_grad", moment.stream), step=moment.step)
        ]
        if reading is not None
    ]
