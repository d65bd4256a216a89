"""`Moment`: one optimiser step from both sides, as a measure finds it that needs the model and not only statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError
from holdfast.core.reading import Reading, Table
from holdfast.core.structure import Structure
from holdfast.live.labelled_batch import LabelledBatch, LossFn
from holdfast.live.replay import Call

Need = Literal["before", "call", "loss", "optimizer"]
"""What a measure cannot do without: the parameters before the step, the forward just trained on, a batch with targets
and its loss, or the optimiser."""


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """One optimiser step of a model, just done.

    Args:
        model: the plain module inside any wrapper; its parameters are those after the step.
        step: the optimiser step just done, from 1.
        stream: the model's name in the run, for the sites of what is measured.
        before: every parameter before the step, by its name, by value; `None` where nobody kept it.
        call: the forward just trained on; `None` where it was not kept.
        batch: `(inputs, targets)` to evaluate the loss on; `None` where none was given.
        loss_fn: `(output, targets)` → a scalar; `None` where none was given.
        optimizer: what made the step; `None` where it is not known.
        structure: the model as a graph; `None` where it could not be told.
    """

    model: nn.Module
    step: int
    stream: str = "net"
    before: Mapping[str, Tensor] | None = None
    call: Call | None = None
    batch: tuple[Any, Any] | None = None
    loss_fn: LossFn | None = None
    optimizer: Optimizer | None = None
    structure: Structure | None = None

    def has(self, need: Need) -> bool:
        """Whether the moment holds what a measure needs.

        Args:
            need: which part.
        """
        if need == "loss":
            return self.batch is not None and self.loss_fn is not None
        return getattr(self, need) is not None

    @property
    def forward(self) -> Call:
        """The forward just trained on, for a measure that repeats it.

        Raises:
            InputError: it was not kept, or its batch was changed in place since.
        """
        if self.call is None:
            raise InputError(
                "a moment with the forward to repeat",
                "call=None",
                "keep it when the batch is known: Moment(model, step, call=record_call((batch,), {}))",
            )
        if not self.call.intact:
            raise InputError(
                "the batch that the forward was given",
                "one that was changed in place since",
                "give the model a copy: model(batch.clone())",
            )
        return self.call

    @property
    def labelled(self) -> LabelledBatch:
        """The batch with its targets and its loss, for a measure that needs gradients.

        Raises:
            InputError: there is no batch or no loss function.
        """
        return LabelledBatch.of(self.batch, self.loss_fn)


Take = Callable[[Moment], Sequence[Reading | Table]]
"""Gives a measure's readings and tables for one step; leaves the model, its gradients and all random generators as they
were."""


class Watchable(NamedTuple):
    """A measure that a watch takes when it is asked to.

    Args:
        start: gives what takes it at the steps of one watch; a measure that gathers over steps keeps them there.
        needs: what it cannot do without.
    """

    start: Callable[[], Take]
    needs: frozenset[Need]
