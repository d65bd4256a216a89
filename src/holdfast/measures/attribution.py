"""Attribution: which layer's update moved which layer's input and output, and what the updates did together.

    d⁽ᵏ⁾_ij = (h_j(x_i; θ with layer k's update alone) − h_j(x_i; θ)) / σ_ref,j      d_ij: with all updates
    ⟨a, b⟩  = mean_j (ā_j b̄_j − cov_i(a_ij, b_ij) / n)          unbiased for the product of two mean shifts
    drift_k  = √max(0, ⟨d⁽ᵏ⁾, d⁽ᵏ⁾⟩)                            parameter drift of layer k's update alone
    effect_k = ⟨d⁽ᵏ⁾, d⟩ / drift_all                            its part along the shift of all together
    interaction = d − Σ_k d⁽ᵏ⁾                                  vector per feature; its effect and its drift likewise
    Σ_k effect_k + effect_interaction = drift_all                exactly

What it sees:
    The same inputs are forwarded under the old parameters, under the new ones, and once for each layer with only that
    layer's update applied. What each update alone did to the mean of every feature is a vector in reference SD. Its
    length is the drift which that layer causes alone; its signed part along the joint shift is its *effect*: positive
    where it pushed the way the site went, negative where it pulled back. Effects add up to the joint drift, lengths do
    not (two updates may move different features, or cancel). What the sum of the single shifts leaves out is the
    interaction. On a chain of linear maps with W₁·(1+a), W₂·(1+b) the effects on the final mean are a, b and ab of it.

Why it matters:
    A layer whose input moves is seldom the culprit: some layer before it is. A slower rate or a normaliser there acts
    on the cause.

When it is wrong:
    It explains one update on one batch, not a trend. A layer's effect is the one at the old values of all others; with
    a large interaction no layer has a share of its own (order would matter), and the figures say so. In training mode a
    batch normaliser uses the batch's statistics in every pass, so that it takes away what a layer before it did to mean
    and scale; buffers, running statistics among them, stay as they are now. The unit, the collapsed features and the
    floor are those of parameter drift. Beyond linear order single precision decides: an interaction below 1e-6 of a
    feature's value is rounding, and lies within its floor. A layer is the leaf module that holds the parameters; a
    shared parameter belongs to the leaf that uses it first, and its update acts wherever it is used.

Example:
    >>> import torch
    >>> chain = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> _ = nn.init.constant_(chain[0].weight, 2.0), nn.init.constant_(chain[1].weight, 3.0)
    >>> x = torch.tensor([[3.0], [4.0], [5.0]])
    >>> found = attribution(chain, x, {"0.weight": torch.tensor([[1.0]]), "1.weight": torch.tensor([[0.3]])})
    >>> found.effect.columns, found.effect.rows[-1]
    (('0', '1', 'all', 'interaction'), 'net/1:output#0@train')
    >>> effects = found.effect.values[-1]                    # W₁ half as large again, W₂ a tenth: 0.5 : 0.1 : 0.05
    >>> [round(each / effects[0], 4) for each in effects]
    [1.0, 0.2, 1.3, 0.1]

References:
    Ioffe & Szegedy 2015, "Batch normalization", section 2 (the shift that the layers before cause).
    Santurkar et al. 2018, "How does batch normalization help optimization?", Definition 2.1 (updates taken apart).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64
from numpy import ndarray
from torch import Tensor, nn

from holdfast.core.errors import InputError, StatisticError
from holdfast.core.protocols import History
from holdfast.core.quantity import Quantity
from holdfast.core.reading import Reading, Table
from holdfast.core.site import Site
from holdfast.core.structure import Structure
from holdfast.core.units import Unit
from holdfast.live.feature_reader import MAX_ELEMENTS, FeatureReader
from holdfast.live.hooks import all_detached
from holdfast.live.inner import inner_model
from holdfast.live.layers import ParameterLayer, parameter_layers
from holdfast.live.moment import Moment
from holdfast.live.repeated import Repeated, repeated
from holdfast.live.replay import Call, record_call
from holdfast.live.structure import extract
from holdfast.measures.pairing import Usable, numbers, usable_features
from holdfast.measures.parameter_drift import mean_shift
from holdfast.stats.features import Features

QUANTITY = Quantity(
    "attribution",
    "effect of a layer's update",
    Unit.REFERENCE_SD,
    "neither",
    (-math.inf, math.inf),
    "a forward per layer",
)

ALL, INTERACTION = "all", "interaction"
TABLES = QUANTITY.name, f"{QUANTITY.name}-drift", f"{QUANTITY.name}-floor"
_SAME = 1e-3
"""Reference SD by which two passes that should be equal may differ: beyond what a device's order of summation does."""

_Rows = Float64[ndarray, "samples usable_channels"]


class Attribution(NamedTuple):
    """Sites × layers, three times; the last two columns are all layers together and the interaction.

    Args:
        effect: signed part of each update's shift along the joint shift; the columns of the layers and the interaction
            add up to the column `all`, which is the joint drift. NaN where the joint shift has no direction.
        drift: parameter drift that each update causes alone.
        floor: noise floor of each drift: 95th percentile when nothing moved. A drift at or below it is within noise,
            and so is its effect.
    """

    effect: Table
    drift: Table
    floor: Table

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers: the columns without the last two."""
        return self.effect.columns[:-2]

    def cells(self, site: Site) -> list[Cell] | None:
        """What is known of a site: a cell for each layer, one for all together, one for the interaction.

        Args:
            site: an input or output of a leaf layer.

        Returns:
            The cells, or `None` for a site that was not seen.
        """
        if str(site) not in self.effect.rows:
            return None
        row = self.effect.rows.index(str(site))
        columns = zip(*(table.values[row] for table in self), strict=True)
        return [Cell(*column) for column in columns]


class Cell(NamedTuple):
    """What one update did to one site.

    Args:
        effect: along the joint shift, signed.
        drift: that it caused alone.
        floor: of that drift.
    """

    effect: float
    drift: float
    floor: float

    @property
    def above_noise(self) -> bool:
        """Whether it moved the site more than chance would."""
        return math.isfinite(self.effect) and self.drift > self.floor


def attributions(history: History, stream: str = "net") -> list[Attribution]:
    """The attributions that a run holds.

    Args:
        history: of a run.
        stream: which model.

    Returns:
        One for each step that was taken apart, in rising order.
    """
    found: dict[tuple[int, tuple[str, ...]], list[Table]] = {}
    for name in TABLES:
        for table in history.tables(name):
            if table.rows and Site.parse(table.rows[0]).stream == stream:
                found.setdefault((table.step, table.rows), []).append(table)
    return [Attribution(*tables) for tables in found.values() if len(tables) == len(TABLES)]


def attribution(
    model: nn.Module,
    inputs: Any,
    update: Mapping[str, Tensor] | None = None,
    *,
    before: Mapping[str, Tensor] | None = None,
    after: Mapping[str, Tensor] | None = None,
    step: int = 0,
    stream: str = "net",
    structure: Structure | None = None,
    max_elements: int | None = MAX_ELEMENTS,
) -> Attribution:
    """Take the shift of every site apart by the layers whose updates caused it.

    The update is told in one of three ways: as `update`, then the model holds θ and θ′ = θ + ΔW; as `before`, then the
    model holds θ′ and `before` θ (after an optimiser step); as `before` and `after`. Afterwards parameters, buffers,
    gradients, modes and random generators are bit for bit what they were; dropout draws the same masks in all passes.

    Args:
        model: in the mode in which it is to be looked at; a compiled or a distributed one is looked into.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments, or a recorded `Call`.
        update: ΔW by the parameter's full name; those left out do not move.
        before: the old values by name, of all parameters that moved.
        after: the new values by name; the model's own when only `before` is given.
        step: the optimiser step after which the update holds.
        stream: name of the model, for the rows.
        structure: of the model, where it is known; else one more pass finds out.
        max_elements: the most elements of one tensor that are read, all samples first; `None` for all.

    Returns:
        Three tables: effect, drift alone, and floor. Rows are the inputs and outputs of the leaf layers as text
        (`Site.parse` reads them), columns the layers whose parameters were named, in the order of execution, then all
        together and the interaction. A layer that does not feed a site has exactly 0 there; a site more than half of
        whose features are collapsed has NaN throughout. One forward pass a layer that changed, less what runs before
        that layer, and three or four beside; the activations of one pass are held meanwhile.

    Raises:
        InputError: the update is missing or told twice, names no parameter of the model, or has another shape; or the
            forward does not give the same twice.
        StatisticError: there are fewer than two samples.
    """
    inner, call = inner_model(model), _call(inputs)
    old, new = _states(inner, update, before, after)
    with all_detached():
        if structure is None or not structure.order:
            structure = extract(inner, call=call)
        with repeated(inner, call) as forward:
            reader = FeatureReader(inner, structure, stream=stream, max_elements=max_elements)
            layers, places = _moved(inner, forward, reader, old, new)
    return _tables(places, layers, step)


def take(moment: Moment) -> list[Reading | Table]:
    """Attribution of the step just done, on the batch it was trained on.

    Args:
        moment: with the parameters before the step and the forward.

    Returns:
        The three tables; nothing where the batch was changed in place since.
    """
    if moment.before is None or moment.call is None or not moment.call.intact:
        return []
    return list(
        attribution(
            moment.model,
            moment.call,
            before=moment.before,
            step=moment.step,
            stream=moment.stream,
            structure=moment.structure,
        )
    )


def _call(inputs: Any) -> Call:
    if isinstance(inputs, Call):
        return inputs
    if isinstance(inputs, dict):
        return record_call((), inputs)
    return record_call(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {})


def _states(
    model: nn.Module,
    update: Mapping[str, Tensor] | None,
    before: Mapping[str, Tensor] | None,
    after: Mapping[str, Tensor] | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Old and new values of the parameters that are named, by their first names."""
    if (update is None) == (before is None) or (update is not None and after is not None):
        ways = [name for name, each in (("update", update), ("before", before), ("after", after)) if each is not None]
        raise InputError(
            "an update, told once",
            " and ".join(ways) or "none",
            "give update= (ΔW by name), or before= (and the model as it is now), or before= and after=",
        )
    told = update if update is not None else before or {}
    if not told:
        raise InputError(
            "the update of at least one parameter, by its name",
            "an empty one",
            "type: before = {name: each.detach().clone() for name, each in model.named_parameters()}",
        )
    first = {parameter: name for name, parameter in model.named_parameters()}
    named = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)} - named.keys()
    old: dict[str, Tensor] = {}
    new: dict[str, Tensor] = {}
    for name, value in told.items():
        if name in buffers:
            continue  # state dictionaries hold them too
        other = value if after is None else after.get(name)
        _require_fits(name, named, value, other)
        own = named[name].detach()
        given, told_after = value.detach().to(own), own if after is None else after[name].detach().to(own)
        key = first[named[name]]
        old[key], new[key] = (own, own + given) if update is not None else (given, told_after)
    return old, new


def _require_fits(name: str, named: Mapping[str, Tensor], *values: Tensor | None) -> None:
    for value in values:
        if name not in named or value is None:
            raise InputError(
                "names of the model's parameters" + (", the same before and after" if name in named else ""),
                repr(name),
                f"take them from model.named_parameters(), such as {next(iter(named), 'none')!r}",
            )
        if not isinstance(value, Tensor) or value.shape != named[name].shape:
            raise InputError(
                f"values of shape {tuple(named[name].shape)} for {name!r}",
                f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}",
                "give every parameter's update in its own shape",
            )


# what the updates do


def _moved(
    model: nn.Module, forward: Repeated, reader: FeatureReader, old: dict[str, Tensor], new: dict[str, Tensor]
) -> tuple[list[str], dict[Site, _Place]]:
    """Run the passes: under the old parameters, under the new ones, and with one layer's update after the other."""
    # Hooks stand on the leaves while the memo is made, so that it answers leaf by leaf and every site is seen.
    with reader:
        memo = forward.record(old)
    reference = reader.found
    layers = _layers(parameter_layers(model, memo), old)
    with reader:
        forward.run(old)
    _check(reference, reader.found)
    moved = {name: new[name] for name in old if not torch.equal(old[name], new[name])}
    with reader:
        forward.run(moved, memo=memo)
    # One tensor may stand at several sites: the output of a layer and the input of the next.
    places: dict[int, _Place] = {}
    for site, before in reference.items():
        if id(before) not in places:
            places[id(before)] = _Place.between(site, before, reader.found.get(site))
    for label, names in layers.items():
        own = {name: moved[name] for name in names if name in moved}
        if own:
            with reader:
                forward.run(own, memo=memo)
            for place in places.values():
                place.count(label, reader.found.get(place.site))
    return list(layers), {site: places[id(before)] for site, before in reference.items()}


def _layers(seen: Sequence[ParameterLayer], told: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names of the parameters that were told of, by layer; last those that were not seen in use."""
    layers = {layer.label: [name for name in layer.names if name in told] for layer in seen}
    used = {name for layer in seen for name in layer.names}
    for name in told:
        if name not in used:
            layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return {label: names for label, names in layers.items() if names}


def _check(first: Mapping[Site, Features], second: Mapping[Site, Features]) -> None:
    if first and max(each.samples for each in first.values()) < 2:
        raise StatisticError("at least two samples", "fewer at every layer", "give a larger batch as inputs")
    for site, one in first.items():
        two = second.get(site)
        allowed = _SAME * one.sd.nan_to_num().to(one.values)
        if (
            two is None
            or two.values.shape != one.values.shape
            or bool(((two.values - one.values).abs() > allowed + _SAME * one.values.abs()).any())
        ):
            raise InputError(
                "a forward that gives the same twice, with the random generators put back",
                f"one that differs at the {site.port} of '{site.label}'",
                "draw its random numbers from torch's, NumPy's or Python's global generator, or seed it in the forward",
            )


@dataclass(slots=True, eq=False)
class _Place:
    """One tensor of the pass, at however many sites: what moved it, in reference SD.

    Args:
        site: the first of them.
        reference: its values under the old parameters.
        usable: its features with a unit; `None` where it has no figure.
        finite: which samples are finite under old and new parameters; the others are left out.
        joint: its shift under the new parameters.
        alone: sum of the shifts that single updates cause.
        cells: effect, drift and floor by layer.
    """

    site: Site
    reference: Features
    usable: Usable | None
    finite: Bool[ndarray, samples]
    joint: _Rows
    alone: _Rows
    cells: dict[str, Cell] = field(default_factory=dict)

    @classmethod
    def between(cls, site: Site, before: Features, after: Features | None) -> _Place:
        """From what the tensor was under the old and under the new parameters."""
        usable = usable_features(before)
        if usable is not None and after is not None and after.values.shape == before.values.shape:
            shift = _shift(before, after, usable)
            finite = np.isfinite(shift).all(1)
            if finite.sum() > 1:
                joint = shift[finite]
                return cls(site, before, usable, finite, joint, np.zeros_like(joint))
        nothing = np.zeros((0, 0))
        return cls(site, before, None, np.zeros(0, np.bool_), nothing, nothing)

    def count(self, layer: str, current: Features | None) -> None:
        """Take in what one layer's update alone does."""
        if self.usable is None:
            return
        if current is None or current.values.shape != self.reference.values.shape:
            shift = np.full_like(self.joint, math.nan)
        else:
            shift = _shift(self.reference, current, self.usable)[self.finite]
        self.alone = self.alone + shift
        self.cells[layer] = self.cell(shift)

    def cell(self, shift: _Rows) -> Cell:
        """What a shift is beside the joint one."""
        if not shift.any():
            return Cell(0.0, 0.0, 0.0)
        if not np.isfinite(shift).all():
            return _UNKNOWN
        moved = mean_shift(shift)
        square = _product(self.joint, self.joint)
        effect = _product(shift, self.joint) / math.sqrt(square) if square > 0 else math.nan
        return Cell(effect, moved.length, moved.floor)

    def row(self, layers: Sequence[str]) -> list[Cell]:
        """The cells of the layers, of all together and of the interaction."""
        if self.usable is None:
            return [_UNKNOWN] * (len(layers) + 2)
        alone = [self.cells.get(layer, Cell(0.0, 0.0, 0.0)) for layer in layers]
        return [*alone, self.cell(self.joint), self.cell(self.joint - self.alone)]


_UNKNOWN = Cell(math.nan, math.nan, math.nan)


def _shift(before: Features, after: Features, usable: Usable) -> _Rows:
    with np.errstate(invalid="ignore", over="ignore"):
        return usable.columns(numbers(after) - numbers(before)) / usable.sd


def _product(a: _Rows, b: _Rows) -> float:
    """mean_j (ā_j b̄_j − cov(a_j, b_j)/n), from the pairs of different samples: unbiased."""
    n, channels = a.shape
    return float(a.sum(0) @ b.sum(0) - np.vdot(a, b)) / (n * (n - 1) * channels)


def _tables(places: Mapping[Site, _Place], layers: Sequence[str], step: int) -> Attribution:
    rows = {id(place): place.row(layers) for place in places.values()}
    n = min((len(place.joint) for place in places.values() if place.usable is not None), default=0)

    def table(name: str, which: int) -> Table:
        values = tuple(tuple(cell[which] for cell in rows[id(place)]) for place in places.values())
        columns = (*layers, ALL, INTERACTION)
        return Table(name, step, QUANTITY.unit, tuple(map(str, places)), columns, values, n)

    return Attribution(*(table(name, which) for which, name in enumerate(TABLES)))
