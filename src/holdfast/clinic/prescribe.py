"""`prescribe`: from findings to a plan, with the reason for each choice and for each rejection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from holdfast.core.errors import HoldfastError, SurgeryError
from holdfast.core.finding import Diagnosis, Finding
from holdfast.core.site import Site
from holdfast.core.treatment import Plan, Receipt
from holdfast.treatments import TREATMENTS
from holdfast.treatments.change import call_of, rerun

Decision = Literal["chosen", "alternative", "recipe", "rejected"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One treatment that a finding names, and what became of it.

    Args:
        rule: the finding's rule.
        rank: of the finding.
        treatment: its name.
        decision: `"chosen"`; `"alternative"`: it could be applied, another came first; `"recipe"`: lines for the
            script, which only the script can keep; `"rejected"`: it cannot be applied here.
        reason: in one phrase.
        plan: worked out; `None` when rejected.
    """

    rule: str
    rank: int
    treatment: str
    decision: Decision
    reason: str
    plan: Plan | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.decision}: {self.treatment}, for {self.rule} (finding {self.rank}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Prescription:
    """What to do about a diagnosis: the plan of the chosen treatment, and all that was weighed.

    It stands for its plan: `diff`, `source`, `apply` are the plan's.

    Args:
        plan: of the chosen treatment; the plan that changes nothing where there is none.
        choices: the chosen one first.
    """

    plan: Plan
    choices: tuple[Choice, ...]

    @property
    def treatment(self) -> str:
        """Name of the chosen treatment; `"nothing"` where there is none."""
        return self.plan.treatment

    @property
    def diff(self) -> str:
        """What would change, as lines `- before` and `+ after`."""
        return self.plan.diff

    @property
    def source(self) -> str:
        """Lines for the user's script that do the same."""
        return self.plan.source

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every plan that can be applied and proved, the chosen one first."""
        return tuple(
            each.plan for each in self.choices if each.plan is not None and each.decision in ("chosen", "alternative")
        )

    def apply(self, model: nn.Module | None = None, optimizer: Optimizer | None = None) -> Receipt:
        """Make the change; see `Plan.apply`.

        Args:
            model: may be given to make sure.
            optimizer: may be given to make sure.

        Returns:
            The receipt.
        """
        return self.plan.apply(model, optimizer)

    def trial(self, model: nn.Module | None = None, optimizer: Optimizer | None = None) -> Receipt:
        """Make the change for a proof; see `Plan.trial`.

        Args:
            model: may be given to make sure.
            optimizer: may be given to make sure.

        Returns:
            The receipt.
        """
        return self.plan.trial(model, optimizer)

    def __str__(self) -> str:
        head = f"{self.treatment}:\n{self.diff}" if self.plans else "nothing to apply"
        return "\n".join([head, *(str(each) for each in self.choices)])


def prescribe(
    diagnosis: Diagnosis, model: nn.Module, optimizer: Optimizer | None, *, batch: Any = None, stream: str | None = None
) -> Prescription:
    """Choose a treatment for a diagnosis.

    Findings are asked in the order of their rank, remarks (severity info) left out; of each finding the treatments in
    its own order. The first that can be applied here is chosen, the later ones are kept as alternatives, each
    treatment once. Nothing is changed.

    Args:
        diagnosis: ranked.
        model: to be treated.
        optimizer: that steps it, if any.
        batch: what the model is called with; then shapes are known and receipts state the error.
        stream: the model's name in the diagnosis; `None` when it holds one model only.

    Returns:
        The prescription.

    Raises:
        InputError: the model does not run on the batch.
        SurgeryError: the diagnosis is of another model.
    """
    if batch is not None:
        rerun(model, call_of(batch))  # what the model does not take is no verdict on a treatment
    choices: list[Choice] = []
    seen: set[str] = set()
    for finding in diagnosis.findings:
        if finding.severity == "info":
            continue
        for name in finding.treatments:
            if name in seen:
                continue
            seen.add(name)
            choices.append(_choice(finding, name, model, optimizer, batch, stream, any(_chosen(c) for c in choices)))
    order: tuple[Decision, ...] = ("chosen", "alternative", "recipe", "rejected")
    choices.sort(key=lambda each: order.index(each.decision))
    first = next((each.plan for each in choices if each.decision == "chosen"), None)
    return Prescription(first or Plan.nothing(model), tuple(choices))


def _chosen(choice: Choice) -> bool:
    return choice.decision == "chosen"


def _choice(
    finding: Finding,
    name: str,
    model: nn.Module,
    optimizer: Optimizer | None,
    batch: Any,
    stream: str | None,
    taken: bool,
) -> Choice:
    treatment = TREATMENTS[name](**({} if batch is None else {"batch": batch}))
    sites = _known(model, [site for site in finding.sites if stream is None or site.stream == stream])
    try:
        plan = treatment.plan(model, optimizer, sites)
    except HoldfastError as error:
        return Choice(finding.rule, finding.rank, name, "rejected", f"it needs {error.expected}; here: {error.got}")
    if plan.apply_ is None:
        proof = "hf.prove can try them" if plan.rehearse_ is not None else "no proof can try them"
        return Choice(finding.rule, finding.rank, name, "recipe", f"lines for your script; {proof}", plan)
    if taken:
        return Choice(finding.rule, finding.rank, name, "alternative", "it could be applied; another came first", plan)
    return Choice(finding.rule, finding.rank, name, "chosen", "its first treatment that can be applied here", plan)


def _known(model: nn.Module, sites: Sequence[Site]) -> list[Site]:
    """Sites of modules with a path of their own; the diagnosis of another model is refused."""
    paths = {path for path, _ in model.named_modules(remove_duplicate=False)}
    strange = [site.module for site in sites if site.module not in paths]
    if strange:
        raise SurgeryError(
            "the model that was diagnosed",
            f"one without {strange[0]!r}",
            "give the model of this run, or diagnose this one",
        )
    return [site for site in sites if site.module]
