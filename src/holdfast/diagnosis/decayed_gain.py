"""Rule `decayed-gain`: weight decay pulls the gains of normalisers towards zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive, Severity
from holdfast.core.protocols import History
from holdfast.core.reading import Reading
from holdfast.core.site import Site
from holdfast.core.structure import Group, ModuleNode, ParameterNode, Structure
from holdfast.core.units import Unit
from holdfast.diagnosis.severity import graded, worst
from holdfast.diagnosis.structures import decays, elements, fact, is_normaliser, judged, setting, trained, weight_site
from holdfast.diagnosis.wording import number, plural

DECOUPLED = frozenset(["AdamW", "Adafactor", "Muon", "Lion"])


@dataclass(frozen=True, slots=True)
class DecayedGain:
    """The gains and shifts of normalisers stand in a group with weight decay, which pulls them towards zero.

    What it sees:
        Groups of the optimiser with `weight_decay` λ above 0 that hold a normaliser's γ or β, and how hard decay
        pulls: per step it takes lr·λ of the value (AdamW and its like), or lr·λ / (1 − momentum) (SGD), at the largest
        rate that the group names. A remark from 1e-6, which over 100,000 steps without a gradient is 10 %; a warning
        from 1e-3, which is 10 % over 100 steps. Where decay goes through an adaptive denominator (Adam) the pull cannot
        be told from the settings: a remark from λ = 1e-6.

        It is a fact, not a figure with noise. Biases that decay in the same groups are counted; alone they are no
        finding.

    Why it matters:
        A weight in front of a normaliser may shrink without effect: the normaliser divides its size away. A gain may
        not: behind it the signal itself becomes smaller, and in a residual branch the branch fades. Decay of so few
        numbers regularises next to nothing, and most recipes for large networks spare them.

    When it is wrong:
        Most networks train well with it: in the classic recipe for residual networks (SGD at 0.1 with momentum 0.9,
        λ = 1e-4) all parameters decay, at 1e-4 per step; the gain from sparing these few is small. A gain followed by
        another normaliser may shrink without effect too. A gain that is stored as 1 + w is pulled to 1, which is
        sound. Decay may be what holds a gain that grows without bound.

    Example:
        Weight decay 0.1 holds gains or shifts of 2 normalisers (128 elements, with 3 biases beside them) and takes
        0.005 of each per step at the learning rate 0.05.

    What to do:
        split-decay puts gains, shifts and biases into a group without decay, in the same optimiser.

    References:
        He et al. 2019, "Bag of tricks for image classification with convolutional neural networks", arXiv:1812.01187;
        van Laarhoven 2017, "L2 regularization versus batch and weight normalization", arXiv:1706.05350.
    """

    name: str = "decayed-gain"
    subject: str = "weight decay on the gains of normalisers"
    treatments: tuple[str, ...] = ("split-decay",)
    static: bool = True
    pull: tuple[float, float, float] = (1e-6, 1e-3, math.inf)

    def check(self, history: History) -> list[Finding] | Inconclusive:
        """Read the optimiser's groups.

        Args:
            history: of a run.

        Returns:
            One finding a model, or why it could not be decided.
        """
        return judged(self.name, history, self._judge)

    def _judge(self, structure: Structure) -> list[Finding] | str:
        if not structure.optimiser:
            return "no optimiser was given"
        pulled = [each for group in structure.groups if (each := self._pulled(structure, group)) is not None]
        if not pulled:
            return []
        pulled.sort(key=lambda each: -each.strength)
        gains = [each for group in pulled for each in group.gains]
        biases = [each for group in pulled for each in group.biases]
        norms = len({node.path for node, _ in gains})
        beside = f", with {len(biases)} bias{'' if len(biases) == 1 else 'es'} beside them" if biases else ""
        return [
            Finding(
                self.name,
                worst([each.level for each in pulled]),
                tuple(dict.fromkeys(Site(node.path, "weight", structure.stream) for node, _ in gains + biases)),
                f"weight decay {number(pulled[0].decay)} holds gains or shifts of {plural(norms, 'normaliser')} "
                f"({sum(elements(each) for _, each in gains):,} elements{beside}) and {pulled[0].how}",
                tuple(evidence for each in pulled for evidence in each.evidence(structure)),
                self.treatments,
            )
        ]

    def _pulled(self, structure: Structure, group: Group) -> _Pulled | None:
        decay = decays(group)
        pull = _pull(structure.optimiser, group)
        level = graded(decay if pull is None else pull, self.pull)
        parameters = trained(structure, group)
        gains = [each for each in parameters if is_normaliser(each[0])]
        if level is None or not gains:
            return None
        if pull is None:
            level = "info"
        biases = [each for each in parameters if each not in gains and each[1].name.rpartition(".")[2] == "bias"]
        return _Pulled(level, decay, pull, _rate(group), gains, biases)


@dataclass(frozen=True, slots=True)
class _Pulled:
    """A group that decays gains."""

    level: Severity
    decay: float
    pull: float | None
    rate: float
    gains: list[tuple[ModuleNode, ParameterNode]]
    biases: list[tuple[ModuleNode, ParameterNode]]

    @property
    def strength(self) -> float:
        return 0.0 if self.pull is None else self.pull

    @property
    def how(self) -> str:
        if self.pull is None:
            return "pulls them towards 0; how fast cannot be told from the settings of this optimiser"
        return f"takes {number(self.pull)} of each per step at the learning rate {number(self.rate)}"

    def evidence(self, structure: Structure) -> list[Reading]:
        size = sum(elements(each) for _, each in self.gains)
        place = weight_site(structure, *self.gains[0])
        found = [fact("weight-decay", place, self.decay, Unit.SETTING, size)]
        return found if self.pull is None else [fact("decay-per-step", place, self.pull, Unit.FRACTION, size), *found]


def _rate(group: Group) -> float:
    """The largest learning rate that a group names: a schedule may begin near 0."""
    return max(setting(group.settings, name) or 0.0 for name in ("lr", "initial_lr", "max_lr"))


def _pull(optimiser: str, group: Group) -> float | None:
    """What decay takes off a value per step, as a fraction; `None` when the settings do not tell."""
    decoupled = group.settings.get("decoupled_weight_decay")
    if decoupled is True or (decoupled is None and optimiser in DECOUPLED):
        return _rate(group) * decays(group)
    momentum = setting(group.settings, "momentum") or 0.0
    if optimiser == "SGD" and 0 <= momentum < 1:
        return _rate(group) * decays(group) / (1 - momentum)
    return None
