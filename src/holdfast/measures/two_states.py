"""The step just done from both sides: what every layer saw on the same samples, before and after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from holdfast.core.reading import Reading
from holdfast.live.feature_reader import FeatureReader
from holdfast.live.hooks import all_detached
from holdfast.live.inner import inner_model
from holdfast.live.moment import Moment, Take, Watchable
from holdfast.live.repeated import repeated
from holdfast.live.structure import extract

Between = Callable[..., Reading | None]
"""`(reference, current, *, site, step, lag)` → a reading: what `parameter_drift` and its like are."""


def watchable(between: Between) -> Watchable:
    """A measure of two states of a site as one that a watch takes when it is asked to.

    Args:
        between: the measure.

    Returns:
        What `WATCHABLE` holds.
    """

    def take(moment: Moment) -> list[Reading]:
        return over_two_states(moment, between)

    def start() -> Take:
        return take

    return Watchable(start, frozenset({"before", "call"}))


def over_two_states(moment: Moment, between: Between) -> list[Reading]:
    """A measure at the inputs and outputs of all leaf layers: the batch trained on, under old and new parameters.

    Two forward passes; parameters, buffers, gradients, modes and random generators are bit for bit what they were.

    Args:
        moment: with the parameters before the step and the forward.
        between: the measure.

    Returns:
        Readings over a lag of one step, in the order of execution; nothing where the batch was changed in place since.
    """
    if moment.before is None or moment.call is None or not moment.call.intact:
        return []
    model = inner_model(moment.model)
    with all_detached():
        structure = moment.structure
        if structure is None or not structure.order:
            structure = extract(model, call=moment.call)
        with repeated(model, moment.call) as forward:
            reader = FeatureReader(model, structure, stream=moment.stream)
            with reader:
                forward.run(dict(moment.before))
            earlier = reader.found
            with reader:
                forward.run({})
            later = reader.found
    found: list[Reading] = []
    # What is one layer's output and the next one's input is compared once.
    known: dict[tuple[int, int], Reading | None] = {}
    for site, reference in earlier.items():
        current = later.get(site)
        if current is None or current.values.shape != reference.values.shape:
            continue
        pair = id(reference), id(current)
        if pair not in known:
            known[pair] = between(reference, current, site=site, step=moment.step, lag=1)
        reading = known[pair]
        if reading is not None:
            found.append(reading if reading.site == site else replace(reading, site=site))
    return found
