"""Rule `degenerate-group`: a normaliser with one or two values per statistic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive, Severity
from holdfast.core.protocols import History
from holdfast.core.site import Site
from holdfast.core.structure import ModuleNode, Structure
from holdfast.core.units import Unit
from holdfast.diagnosis.structures import fact, judged, setting
from holdfast.diagnosis.wording import names, plural

FEATURES = frozenset(["LayerNorm", "RMSNorm"])
AXES = {"InstanceNorm1d": 1, "InstanceNorm2d": 2, "InstanceNorm3d": 3}
"""How many axes of positions an InstanceNorm takes."""


@dataclass(frozen=True, slots=True)
class DegenerateGroup:
    """A normaliser takes each of its statistics over one value, or over two, and what comes in is lost.

    What it sees:
        The number of values of a sample that share a mean and a scale: in a LayerNorm or RMSNorm the product of
        `normalized_shape`; in a GroupNorm channels ÷ groups × positions; in an InstanceNorm positions, with the shape
        that came in during the pass that was followed. One value is critical (x − mean is 0), two are a warning; an
        RMSNorm over one value is a warning.

        It is a fact, not a figure with noise. BatchNorm, and InstanceNorm over one position, are not judged: over one
        value PyTorch raises in training.

    Why it matters:
        Of one value x the mean is x: γ·(x − x)/√ε + β = β, whatever x is, but for rounding, and no gradient passes. Of
        two values the normalised ones are +1 and −1 (up to ε): all that is left is which is larger, with a gradient
        near 0. An RMSNorm of one value keeps its sign alone.

    When it is wrong:
        A GroupNorm with one channel per group over many positions is InstanceNorm, and well: it is not found. The
        positions are those of one batch: pictures or sequences of another size may have more.

    Example:
        GroupNorm '1' takes each statistic over 1 value: whatever comes in, β comes out.

    What to do:
        Fewer groups, so that each has 16 values or more: swap-norm (to="layer" in place of a GroupNorm). Over a single
        feature there is nothing to normalise: take the layer out.

    References:
        Wu & He 2018, "Group normalization", arXiv:1803.08494; Ba, Kiros & Hinton 2016, "Layer normalization",
        arXiv:1607.06450.
    """

    name: str = "degenerate-group"
    subject: str = "a normaliser with too few values per statistic"
    treatments: tuple[str, ...] = ("swap-norm",)
    static: bool = True

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the normalisers' settings and the shapes that came in.

        Args:
            history: of a run.

        Returns:
            One finding a model and severity, or why it could not be decided.
        """
        return judged(self.name, history, self._judge)

    def _judge(self, structure: Structure) -> list[Finding] | str:
        nodes: dict[tuple[Severity, str, int], list[ModuleNode]] = {}
        unknown = []
        for node in structure.modules:
            values = _values(node)
            if values is None:
                unknown += [node.path] if _may_degenerate(node) else []
            elif 1 <= values <= 2 and (lost := _lost(node, values)) is not None:
                nodes.setdefault((*lost, values), []).append(node)
        if unknown and not nodes:
            return f"how many positions '{unknown[0]}' normalises over is not known: no forward pass was followed"
        return list(self._findings(structure, nodes))

    def _findings(
        self, structure: Structure, nodes: dict[tuple[Severity, str, int], list[ModuleNode]]
    ) -> Iterator[Finding]:
        for (severity, effect, values), found in nodes.items():
            sites = tuple(Site(node.path, "input", structure.stream) for node in found)
            kinds = " and ".join(dict.fromkeys(node.kind for node in found))
            yield Finding(
                self.name,
                severity,
                sites,
                f"{kinds} {names(sites)} {'takes' if len(found) == 1 else 'take'} each statistic over "
                f"{plural(values, 'value')}: {effect}",
                tuple(fact("values-per-statistic", site, float(values), Unit.COUNT) for site in sites),
                self.treatments,
            )


def _values(node: ModuleNode) -> int | None:
    """Values of one sample that share a statistic; `None` for other modules and where no shape was seen."""
    if not FEATURES.isdisjoint((node.kind, *node.bases)):
        shape = node.settings.get("normalized_shape")
        whole = isinstance(shape, list | tuple) and all(isinstance(size, int) for size in shape)
        return math.prod(shape) if shape and whole else None
    if node.input_shape is None:
        return None
    per_group, axes = _channels_per_group(node), _axes(node)
    if per_group is not None:
        return int(per_group * math.prod(node.input_shape[2:]))
    return None if axes is None else math.prod(node.input_shape[len(node.input_shape) - axes :])


def _channels_per_group(node: ModuleNode) -> float | None:
    groups, channels = setting(node.settings, "num_groups"), setting(node.settings, "num_channels")
    return None if not groups or not channels or "GroupNorm" not in (node.kind, *node.bases) else channels // groups


def _axes(node: ModuleNode) -> int | None:
    return next((AXES[name] for name in (node.kind, *node.bases) if name in AXES), None)


def _may_degenerate(node: ModuleNode) -> bool:
    """Whether the shape that is not known decides."""
    per_group = _channels_per_group(node)
    # A module that did not run in the pass is not judged.
    return node.calls is None and ((per_group is not None and per_group <= 2) or _axes(node) is not None)


def _lost(node: ModuleNode, values: int) -> tuple[Severity, str] | None:
    """What happens to so few values."""
    if "RMSNorm" in (node.kind, *node.bases):
        return ("warning", "only the sign of what comes in is left") if values == 1 else None
    if values == 1 and _axes(node) is not None:
        return None
    if values == 1:
        return "critical", "whatever comes in, β comes out"
    return "warning", "all that is left of two values is which is larger"
