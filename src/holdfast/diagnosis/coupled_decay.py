"""Rule `coupled-decay`: weight decay that an adaptive optimiser divides by the gradient's own size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from holdfast.core.finding import Finding, Inconclusive
from holdfast.core.protocols import History
from holdfast.core.structure import Group, Structure
from holdfast.core.units import Unit
from holdfast.diagnosis.severity import graded, worst
from holdfast.diagnosis.structures import decays, elements, fact, judged, trained, weight_site
from holdfast.diagnosis.wording import number, plural

COUPLED = frozenset(["Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop"])
"""Torch's optimisers that add λ·w to the gradient and then divide by the gradient's size."""

SOUND = frozenset(["AdamW", "SGD", "ASGD", "Adafactor", "Muon", "Lion", "LBFGS", "Rprop", "SparseAdam"])
"""Optimisers that decay the weight itself, or divide by nothing."""


@dataclass(frozen=True, slots=True)
class CoupledDecay:
    """Adam's weight decay goes through the gradient, so that the weights with the largest gradients decay least.

    What it sees:
        The optimiser's class and its groups: `weight_decay` λ above 0 in Adam, NAdam or RAdam without
        `decoupled_weight_decay`, or in Adamax, Adagrad, Adadelta or RMSprop, which know no other. A remark from
        λ = 1e-5, a warning from 1e-2, AdamW's default. Seen with Adam on a perceptron of 128 units: at λ = 1e-5 the
        decay is 0.01 to 0.1 % of the gradient (RMS), at 1e-3 1 to 8 %, at 1e-2 5 to 30 %, and at 0.1 it is larger than
        the gradient: the loss stays at chance.

        It is a fact, not a figure with noise.

    Why it matters:
        The step is lr·(g + λw)/√v: where gradients are large, λw is divided by their size and hardly decays; where
        they are small, decay alone sets the direction. λ then has to be tuned anew with every learning rate, and a λ
        copied from a recipe for AdamW is a different and much stronger thing.

    When it is wrong:
        Where a recipe was tuned with it (RMSprop with 1e-5 for mobile networks), it is part of the recipe. An optimiser
        of another package that bears one of these names may decay otherwise; one of an unknown name is not judged.

    Example:
        Adam adds weight decay 0.01 to the gradient of 8 parameters (85,002 elements) and divides it by the gradient's
        own size.

    What to do:
        decouple-decay turns Adam, NAdam and RAdam into their decoupled forms as they run; give its factor, because the
        same λ is weaker there. For the others build the optimiser anew: torch.optim.AdamW.

    References:
        Loshchilov & Hutter 2019, "Decoupled weight decay regularization", arXiv:1711.05101.
    """

    name: str = "coupled-decay"
    subject: str = "weight decay that goes through the adaptive denominator"
    treatments: tuple[str, ...] = ("decouple-decay",)
    static: bool = True
    decay: tuple[float, float, float] = (1e-5, 1e-2, math.inf)

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
        coupled = []
        for group in structure.groups:
            level = graded(decays(group), self.decay)
            parameters = trained(structure, group)
            if level is None or not parameters:
                continue
            through = _through_the_gradient(structure.optimiser, group)
            if through is None:
                return f"whether {structure.optimiser} decays weights through their gradients is not known here"
            if through:
                coupled.append((decays(group), level, parameters))
        if not coupled:
            return []
        coupled.sort(key=lambda each: -each[0])
        evidence, sites = [], []
        for decay, _, parameters in coupled:
            parameters.sort(key=lambda each: -elements(each[1]))
            size = sum(elements(parameter) for _, parameter in parameters)
            places = [weight_site(structure, node, parameter) for node, parameter in parameters]
            evidence.append(fact("weight-decay", places[0], decay, Unit.SETTING, size))
            sites += places
        held = sum(len(parameters) for *_, parameters in coupled)
        values = " and ".join(number(decay) for decay in dict.fromkeys(decay for decay, *_ in coupled))
        return [
            Finding(
                self.name,
                worst([level for _, level, _ in coupled]),
                tuple(dict.fromkeys(sites)),
                f"{structure.optimiser} adds weight decay {values} to the gradient of {plural(held, 'parameter')} "
                f"({sum(each.n for each in evidence):,} elements) and divides it by the gradient's own size",
                tuple(evidence),
                self.treatments,
            )
        ]


def _through_the_gradient(optimiser: str, group: Group) -> bool | None:
    """Whether decay is added to the gradient of an adaptive optimiser; `None` when that is not known."""
    decoupled = group.settings.get("decoupled_weight_decay")
    if isinstance(decoupled, bool):
        return not decoupled
    if optimiser in SOUND:
        return False
    if optimiser == "Adam":  # before torch 2.7 without that setting; other packages have an Adam too
        return True if "amsgrad" in group.settings else None
    return True if optimiser in COUPLED else None
