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
from holdfast.live.replay import Call, record_call

LossFn = Callable[[Any, Any], Tensor]

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

    def loss_pass(self) -> tuple[Call, Callable[[Any], Tensor]]:
        """The batch as a call, and what makes its loss from the model's output.

        Returns:
            The call, with the random state of now, and a function that raises an `InputError` where the loss is not a
            scalar with a graph.

        Raises:
            InputError: there is no batch or no loss function.
        """
        if self.batch is None or self.loss_fn is None:
            missing = "batch" if self.batch is None else "loss_fn"
            raise InputError(
                "a moment with a batch and a loss",
                f"{missing}=None",
                "give both: Moment(model, step, batch=(inputs, targets), loss_fn=torch.nn.functional.cross_entropy)",
            )
        (inputs, targets), loss_fn = self.batch, self.loss_fn
        if isinstance(inputs, Mapping):
            call = record_call((), dict(inputs))
        else:
            call = record_call(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {})

        def loss_of(output: Any) -> Tensor:
            try:
                loss = loss_fn(output, targets)
            except Exception as error:
                if targets is not None:
                    raise
                raise InputError(
                    "targets for the loss", "batch=(inputs, None)", "give both: batch=next(iter(loader))"
                ) from error
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                detached = isinstance(loss, Tensor) and loss.numel() == 1
                raise InputError(
                    "a loss that is one number and leads back to the parameters",
                    "one without a graph" if detached else got,
                    "return torch.nn.functional.cross_entropy(output, targets), without .item() or .detach()",
                )
            return loss

        return call, loss_of


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
