"""`Change`: what a treatment did; and the plan around it, which measures and can take it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from holdfast.core.errors import HoldfastError, InputError, SurgeryError
from holdfast.core.interrupt import deferred
from holdfast.core.treatment import Owner, Plan, Receipt
from holdfast.live.replay import Call, Mode, record_call, replay

Batch = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""What the model is called with: one tensor, a tuple of positional arguments, or a dictionary of keyword ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What was changed and how to take it back.

    Args:
        lines: `"before → after"`, one for each thing.
        undo: puts everything back, bit for bit.
        renamed: keys of the `state_dict` that have another name now, old → new.
        removed: keys of the `state_dict` that are gone.
        values: see `Receipt`.
    """

    lines: tuple[str, ...]
    undo: Callable[[], None]
    renamed: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    values: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None


def planned(
    treatment: str,
    model: nn.Module,
    make: Callable[[], Change],
    *,
    diff: str,
    source: str,
    batch: Batch | Callable[[], Batch] | None,
    optimizer: Owner = "any",
) -> Plan:
    """A plan whose receipt states what the change did to the computed function.

    The model runs on the batch before and after, in eval and in train mode, with the same random numbers and without
    a trace. If it does not run afterwards, or Ctrl-C comes meanwhile, the change is taken back. Changes of one model
    are undone in the order opposite to that in which they were made: `undo` refuses while a later one is in force.

    Args:
        treatment: its name.
        model: what is changed.
        make: makes the change, all or nothing.
        diff: see `Plan`.
        source: see `Plan`.
        batch: on which the error is measured, or a function that gives it when the plan is applied, or `None`.
        optimizer: what is changed too, `None` where there was none to change; `"any"` where the change does not
            concern it.

    Returns:
        The plan.
    """
    present: _InForce | None = None

    def apply() -> Receipt:
        nonlocal present
        if present is not None:
            raise SurgeryError(
                f"a {treatment} that is not in force", "a plan that was applied already", "receipt.undo() comes first"
            )
        given = batch() if callable(batch) else batch
        before = None if given is None else outputs(model, given)
        change: Change | None = None
        try:
            with deferred():
                change = make()
                after = None if given is None else _outputs_after(treatment, model, given)
                errors = (None, None) if before is None or after is None else tuple(map(difference, before, after))
                present = _InForce(treatment, change.lines)
                _in_force.setdefault(model, []).append(present)
                undo, (in_eval, in_train) = undo_of(change), errors
                return Receipt(
                    treatment, change.lines, undo, in_eval, in_train, change.renamed, change.removed, change.values
                )
        except BaseException:  # Ctrl-C among them
            with deferred():
                if change is not None:
                    change.undo()
                    end()
            raise

    def undo_of(change: Change) -> Callable[[], None]:
        def undo() -> None:
            latest = _in_force[model][-1]
            if latest is not present:
                raise SurgeryError(
                    "the change of this model that was made last",
                    f"a {treatment}, after which a {latest.treatment} came",
                    f"undo the later change first: {latest}",
                )
            change.undo()
            end()

        return undo

    def end() -> None:
        nonlocal present
        if present is not None:
            _in_force[model].remove(present)
            present = None

    return Plan(treatment, diff, source, apply, model, optimizer=optimizer)


@dataclass(frozen=True, slots=True, eq=False)
class _InForce:
    """A change that is in force; of the model it holds nothing."""

    treatment: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.lines) - 1} more" if len(self.lines) > 1 else ""
        return f"{self.treatment} ({''.join(self.lines[:1])}{more})"


_in_force: WeakKeyDictionary[nn.Module, list[_InForce]] = WeakKeyDictionary()
"""The changes of each model, the last one last."""


def _outputs_after(treatment: str, model: nn.Module, batch: Batch) -> tuple[Any, Any]:
    try:
        return outputs(model, batch)
    except Exception as error:
        raise SurgeryError(
            "a model that still runs on the batch",
            f"this after {treatment}: {error.got if isinstance(error, InputError) else error}",
            "the change was taken back; name other layers with sites=",
        ) from error


def outputs(model: nn.Module, batch: Batch) -> tuple[Any, Any]:
    """What the model gives on a batch in eval and in train mode; nothing is changed by it.

    Args:
        model: the model.
        batch: what it is called with.

    Returns:
        `(in eval mode, in train mode)`.
    """
    call = call_of(batch)
    return rerun(model, call, "eval"), rerun(model, call, "train")


def call_of(batch: Batch) -> Call:
    """The call of the model that a batch stands for, with the random numbers that come next.

    Args:
        batch: what the model is called with.

    Returns:
        The call, for `rerun`.
    """
    if isinstance(batch, Mapping):
        return record_call((), batch)
    return record_call(batch if isinstance(batch, tuple) else (batch,), {})


def rerun(model: nn.Module, call: Call, mode: Mode = "as it was") -> Any:
    """Run the model on a call without a trace.

    Args:
        model: the model.
        call: from `call_of`.
        mode: see `live.replay.replay`.

    Returns:
        What the forward returned.

    Raises:
        InputError: the model does not run on it.
    """
    try:
        return replay(model, call, mode=mode)
    except HoldfastError:
        raise
    except Exception as error:
        raise InputError(
            "a batch that the model takes" + ("" if mode == "as it was" else f" in {mode} mode"),
            f"one on which it raises {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            "give what you call the model with, without the targets (a tensor, a tuple or a dict)",
        ) from error


def difference(before: Any, after: Any) -> float:
    """The largest absolute difference between two outputs.

    Args:
        before: a tensor or any nest of them.
        after: of the same structure.

    Returns:
        The difference in the outputs' own unit; infinite when shapes differ, NaN when one is not finite where the
        other is.

    Example:
        >>> import torch
        >>> difference({"logits": torch.tensor([1.0, 2.0])}, {"logits": torch.tensor([1.0, 2.5])})
        0.5
    """
    pairs = [
        (a, b)
        for a, b in zip(tree_leaves(before), tree_leaves(after), strict=True)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    ]
    worst = 0.0
    for a, b in pairs:
        if a.shape != b.shape:
            return float("inf")
        if a.numel():
            gap = (a.double() - b.double()).abs()
            # inf − inf is no difference: both overflowed in the same way
            gap = gap.masked_fill(a == b, 0.0)
            worst = max(worst, gap.max().item()) if not gap.isnan().any() else float("nan")
        if worst != worst:
            return worst
    return worst
