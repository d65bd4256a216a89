"""`Asked`: the measures that a user asked a watch for, beside the ones that it takes anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from holdfast.core.errors import InputError
from holdfast.core.reading import Reading, Table
from holdfast.core.structure import Structure
from holdfast.live.labelled_batch import LossFn
from holdfast.live.moment import Moment, Watchable
from holdfast.live.replay import Call
from holdfast.measures import OFFLINE, QUANTITIES, WATCHABLE

Guard = Callable[..., Any]

STANDING = frozenset(
    {
        "backward-gain",
        "batch-noise",
        "collapsed-features",
        "dead-units",
        "drift-gain",
        "gradient-norm",
        "observed-drift",
        "parameter-drift",
        "parameter-share",
        "running-lag",
        "sampling-drift",
        "saturated-fraction",
        "scale-shift",
        "signal-spread",
        "train-eval-gap",
        "update-ratio",
        "weight-norm",
    }
)
"""Measures that every watch takes."""


class Asked:
    """Takes measures that need the model itself, at the steps it is told to.

    Args:
        names: of the measures; those that a watch takes anyway may be among them.
        model: the plain module.
        batch: `(inputs, targets)`, for measures that evaluate the loss.
        loss_fn: `(output, targets)` → a scalar.
        stream: the model's name in the run.

    Raises:
        InputError: there is no such measure, or one needs a loss that was not given.
    """

    def __init__(
        self,
        names: Sequence[str],
        model: nn.Module,
        *,
        batch: tuple[Any, Any] | None,
        loss_fn: LossFn | None,
        stream: str,
    ) -> None:
        if isinstance(names, str):
            names = (names,)
        self._measures: dict[str, Watchable] = {}
        for name in names:
            found = _watchable(name)
            # several names may be figures of one measurement
            if found is not None and found not in self._measures.values():
                self._measures[name] = found
        for name, measure in self._measures.items():
            if "loss" in measure.needs and (batch is None or loss_fn is None):
                missing = " and ".join(
                    each for each, given in (("loss_fn", loss_fn), ("batch", batch)) if given is None
                )
                raise InputError(
                    f"a loss and a batch with targets, which {name} needs",
                    f"no {missing}",
                    f"type: hf.watch(model, optimizer, measures=[{name!r}], loss_fn=loss_fn, batch=(inputs, targets))",
                )
        self._model, self._batch, self._loss_fn, self._stream = model, batch, loss_fn, stream
        self._takes = {name: measure.start() for name, measure in self._measures.items()}
        self._before: dict[str, Tensor] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the measures that are not taken anyway."""
        return tuple(self._measures)

    def __bool__(self) -> bool:
        return bool(self._measures)

    def hold(self) -> None:
        """Keep the parameters as they are before the step, where a measure needs them."""
        if any("before" in measure.needs for measure in self._measures.values()):
            self._before = {name: each.detach().clone() for name, each in self._model.named_parameters()}

    def take(
        self,
        step: int,
        *,
        call: Call | None,
        optimizer: Optimizer,
        structure: Structure | None,
        guard: Guard,
        note: Callable[[str], None],
    ) -> list[Reading | Table]:
        """Take every measure that has what it needs.

        Args:
            step: the optimiser step just done.
            call: the forward just trained on.
            optimizer: what made the step.
            structure: of the model.
            guard: runs a function with arguments under the name of a part, and leaves that part out when it fails.
            note: says once why there was nothing to say.
        """
        before, self._before = self._before, None
        moment = Moment(self._model, step, self._stream, before, call, self._batch, self._loss_fn, optimizer, structure)
        found: list[Reading | Table] = []
        for name, measure in self._measures.items():
            missing = sorted(need for need in measure.needs if not moment.has(need))
            if missing:
                note(f"no {name} at some steps: {_MISSING[missing[0]]}")
            else:
                found += guard(name, self._takes[name], moment) or []
        return found


_MISSING = {
    "before": "the parameters before the step were not kept",
    "call": "the model was not called in training mode with gradients, or its batch was changed in place afterwards",
    "loss": "there is no loss",
    "optimizer": "the optimiser is not known",
}


def _watchable(name: str) -> Watchable | None:
    """The measure; `None` for one that a watch takes anyway."""
    if name in WATCHABLE:
        return WATCHABLE[name]
    if name in STANDING:
        return None
    if name in OFFLINE:
        raise InputError(
            "a measure of a model in training",
            f"{name!r}, which a stored run is enough for",
            f"leave it out, and type afterwards: run.measure({name!r})",
        )
    if name in QUANTITIES:
        raise InputError(
            f"a measure that a watch can take: {', '.join(sorted(WATCHABLE))}",
            f"{name!r}, which is a function to call by itself",
            f"type: hf.measures.{name.replace('-', '_')}(…); holdfast explain {name} shows how",
        )
    known = sorted({*WATCHABLE, *STANDING})
    near = get_close_matches(name, known, 1) or known[:1]
    raise InputError(f"the name of a measure: {', '.join(known)}", repr(name), f"type: measures=[{near[0]!r}]")
