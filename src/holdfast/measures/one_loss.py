"""Measures of one batch's loss, as a watch takes them: at the parameters after the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.live.moment import Moment, Take, Watchable
from holdfast.measures.curvature_spread import curvature_spread
from holdfast.measures.spectral_density import spectral_density

OfLoss = Callable[..., Reading | None]
"""`(model, loss_fn, batch, *, site, step)` → a reading: what `sharpness` and its like are."""


def watchable(measure: OfLoss) -> Watchable:
    """A measure of a model's loss on one batch as one that a watch takes when it is asked to.

    Args:
        measure: the measure.

    Returns:
        What `WATCHABLE` holds; it gives no reading where the loss is not finite.
    """

    def take(moment: Moment) -> list[Reading]:
        if moment.batch is None or moment.loss_fn is None:
            return []
        site = Site("", "weight", stream=moment.stream)
        found = measure(moment.model, moment.loss_fn, moment.batch, site=site, step=moment.step)
        return [] if found is None else [found]

    def start() -> Take:
        return take

    return Watchable(start, frozenset({"loss"}))


def spread_of(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], batch: Any, *, site: Site, step: int
) -> Reading | None:
    """Curvature spread of a batch's loss, from a spectral density of its own.

    Args:
        model: the model, which stays as it is.
        loss_fn: `(output, targets)` → a scalar.
        batch: `(inputs, targets)`.
        site: where to note it.
        step: the step.

    Returns:
        The reading; `None` where a product is not finite, or the largest eigenvalue is not positive.
    """
    density = spectral_density(model, loss_fn, batch, step=step)
    return None if density is None else curvature_spread(density, site=site, step=step)
