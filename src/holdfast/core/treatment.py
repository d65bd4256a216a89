"""`Treatment`, its `Plan` and its `Receipt`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError, SurgeryError
from holdfast.core.interrupt import deferred
from holdfast.core.site import Site


@dataclass(slots=True)
class Receipt:
    """What a treatment changed, what that did to the computed function, and how to take it back.

    Args:
        treatment: its name.
        changes: one line for each thing changed, `"before → after"`.
        undo_: puts everything back, bit for bit.
        error_eval: largest absolute change of the output on the given batch in eval mode; `None` when no batch
            was given.
        error_train: the same in train mode.
        renamed: keys of the `state_dict` under which the same tensor has another name now, old → new.
        removed: keys of the `state_dict` that are gone.
        values: for values that a treatment works out from others: those of a given checkpoint, by their keys now.
    """

    treatment: str
    changes: tuple[str, ...]
    undo_: Callable[[], None]
    error_eval: float | None = None
    error_train: float | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    values: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    undone: bool = field(default=False, init=False)

    def undo(self) -> None:
        """Put model and optimiser back as they were before; Ctrl-C waits meanwhile.

        Raises:
            SurgeryError: it was undone already, or a later change of the model is in force.
        """
        if self.undone:
            raise SurgeryError(
                f"a {self.treatment} that is in force", "one that was undone already", "apply the plan again first"
            )
        with deferred():
            self.undo_()
            self.undone = True

    def convert(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A checkpoint of the model before the treatment, under the names and with the values after it.

        Keys that the treatment added are not in it: where there are any, load with `strict=False`, and they stay as
        they are.

        Args:
            state: what `model.state_dict()` gave before.

        Returns:
            The same tensors, those whose keys are gone left out, and what the treatment works out from them.

        Raises:
            InputError: a value that is needed is not in it.

        Example:
            >>> receipt = Receipt("swap", (), lambda: None, renamed={"1.weight": "1.0.weight"}, removed=("1.mean",))
            >>> receipt.convert({"0.weight": 1, "1.weight": 2, "1.mean": 3})
            {'0.weight': 1, '1.0.weight': 2}
        """
        kept = {self.renamed.get(key, key): value for key, value in state.items() if key not in self.removed}
        try:
            return kept if self.values is None else {**kept, **self.values(state)}
        except KeyError as error:
            raise InputError(
                f"a whole checkpoint of the model before the {self.treatment}",
                f"one without the key {error}",
                "give what model.state_dict() gave before",
            ) from error


Owner = Optimizer | Literal["any"] | None
"""Which optimiser a plan is for: this one; any, as it does not concern the change; none, as there was none."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A change that has been worked out and not yet made.

    Args:
        treatment: its name.
        diff: what would change, as lines `- before` and `+ after`.
        source: lines for the user's own script that do the same.
        apply_: makes the change; `None` for a recipe, which only the user's script can follow.
        model: what it was worked out for.
        rehearse_: for a recipe: acts on model and optimiser as its lines would, until the returned function is called;
            so a proof can try what only the script can keep.
        optimizer: what it was worked out for.
    """

    treatment: str
    diff: str
    source: str
    apply_: Callable[[], Receipt] | None = None
    model: nn.Module | None = field(default=None, repr=False, compare=False)
    rehearse_: Callable[[], Callable[[], None]] | None = field(default=None, repr=False, compare=False)
    optimizer: Owner = field(default="any", repr=False, compare=False)

    @classmethod
    def nothing(cls, model: nn.Module | None = None) -> Plan:
        """The plan that changes nothing: the control of a proof.

        Args:
            model: for which it stands.

        Example:
            >>> Plan.nothing().apply().changes
            ()
        """
        return cls("nothing", "", "", lambda: Receipt("nothing", (), lambda: None, 0.0, 0.0), model)

    def apply(self, model: nn.Module | None = None, optimizer: Optimizer | None = None) -> Receipt:
        """Make the change.

        Args:
            model: may be given to make sure: the model that the plan was worked out for.
            optimizer: may be given to make sure: the optimiser that the plan was worked out for.

        Returns:
            The receipt, with `undo()`.

        Raises:
            SurgeryError: the plan is a recipe, or was worked out for another model or another optimiser.
        """
        self._check_owner(model, optimizer)
        if self.apply_ is None:
            raise SurgeryError(
                "a plan that changes the model or the optimiser",
                f"the recipe {self.treatment!r}, which only your script can follow",
                f"paste its lines:\n{self.source}",
            )
        return self.apply_()

    def trial(self, model: nn.Module | None = None, optimizer: Optimizer | None = None) -> Receipt:
        """Make the change for a proof: `apply`, or, where a recipe can be rehearsed, act as its lines would.

        Args:
            model: see `apply`.
            optimizer: see `apply`.

        Returns:
            A receipt whose `undo` ends it.

        Raises:
            SurgeryError: see `apply`; the recipe needs more of the script than model and optimiser.
        """
        if self.apply_ is not None or self.rehearse_ is None:
            return self.apply(model, optimizer)
        self._check_owner(model, optimizer)
        return Receipt(self.treatment, (f"{self.treatment}: lines in the script → rehearsed",), self.rehearse_())

    def _check_owner(self, model: nn.Module | None, optimizer: Optimizer | None) -> None:
        if model is not None and self.model is not None and model is not self.model:
            raise SurgeryError(
                "the model that the plan was worked out for",
                f"another {type(model).__name__}",
                "plan again for this one: hf.prescribe(run, model, optimizer)",
            )
        if model is not None and optimizer is not None:
            own = {id(parameter) for parameter in model.parameters()}
            if not any(id(each) in own for group in optimizer.param_groups for each in group["params"]):
                raise SurgeryError(
                    "the optimiser that steps this model",
                    f"a {type(optimizer).__name__} that holds none of its parameters",
                    "give the optimiser that was built from model.parameters()",
                )
        if optimizer is not None and self.optimizer != "any" and optimizer is not self.optimizer:
            raise SurgeryError(
                "the optimiser that the plan was worked out for",
                f"a {type(optimizer).__name__}, and the plan was worked out "
                + ("without one" if self.optimizer is None else f"for another {type(self.optimizer).__name__}"),
                "plan again for this one: hf.prescribe(run, model, optimizer), or treatment.plan(model, optimizer)",
            )


@runtime_checkable
class Treatment(Protocol):
    """A change to a model, to its optimiser, or (a recipe) to the user's script."""

    name: str

    def plan(self, model: nn.Module, optimizer: Optimizer | None, sites: Sequence[Site] = ()) -> Plan:
        """Work out the change for the given sites (all that qualify when none are given)."""
        ...
