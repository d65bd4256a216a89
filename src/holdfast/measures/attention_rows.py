"""`take`: saturation and entropy of every attention of a model, per layer and per head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading, Table
from holdfast.live.attention import Attended, Attentions
from holdfast.live.inner import inner_model
from holdfast.live.moment import Moment
from holdfast.measures.attention_entropy import QUANTITY as ENTROPY
from holdfast.measures.attention_entropy import attention_entropy
from holdfast.measures.attention_saturation import QUANTITY as SATURATION
from holdfast.measures.attention_saturation import attention_saturation


def take(moment: Moment) -> list[Reading | Table]:
    """Repeat the forward just trained on and read its attentions.

    Args:
        moment: needs the call.

    Returns:
        Of each attention both readings, then two tables, attentions × heads.
    """
    model = inner_model(moment.model)
    attentions = Attentions(moment.stream)
    attentions.follow(model, moment.forward)
    found: list[Reading | Table] = []
    for attended in attentions.found:
        readings = (measure(attended, step=moment.step) for measure in (attention_saturation, attention_entropy))
        found += [reading for reading in readings if reading is not None]
    found += _per_head(SATURATION, attention_saturation, attentions.found, moment.step)
    found += _per_head(ENTROPY, attention_entropy, attentions.found, moment.step)
    return found


def _per_head(
    quantity: Quantity, measure: Callable[..., Reading | None], found: Sequence[Attended], step: int
) -> Iterator[Table]:
    heads = max((attended.largest.shape[1] for attended in found), default=0)
    if heads < 2:
        return
    rows = []
    samples = []
    for attended in found:
        split = zip(torch.split(attended.largest, 1, 1), torch.split(attended.entropy, 1, 1), strict=True)
        readings = [measure(Attended(attended.site, *one, attended.queries), step=step) for one in split]
        samples += [reading.n for reading in readings if reading is not None]
        values = [math.nan if reading is None else reading.value for reading in readings]
        rows.append((*values, *[math.nan] * (heads - len(values))))
    if samples:
        names = tuple(str(attended.site) for attended in found)
        columns = tuple(f"head {head}" for head in range(heads))
        yield Table(quantity.name, step, quantity.unit, names, columns, tuple(rows), min(samples))
