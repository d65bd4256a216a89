"""`LabelledBatch`: a batch with its targets and a loss, for measures that need gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from holdfast.core.errors import InputError
from holdfast.live.replay import Call, record_call
from holdfast.live.tensors import tensors_in

LossFn = Callable[[Any, Any], Tensor]

_FEWEST = 2
"""Samples that make a part: a BatchNorm needs two."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledBatch:
    """Inputs, targets, and a loss of the output.

    Args:
        inputs: one tensor, a tuple of positional or a dictionary of keyword arguments of the model.
        targets: what the loss takes beside the output.
        loss_fn: `(output, targets)` → a scalar.
        samples: length of the batch.
    """

    inputs: Any
    targets: Any
    loss_fn: LossFn
    samples: int

    @classmethod
    def of(cls, batch: object, loss_fn: object) -> LabelledBatch:
        """Check what a user gave.

        Args:
            batch: `(inputs, targets)`.
            loss_fn: `(output, targets)` → a scalar.

        Raises:
            InputError: no loss, or no pair.
        """
        if not callable(loss_fn):
            raise InputError(
                "a loss_fn(output, targets)",
                "none" if loss_fn is None else f"a {type(loss_fn).__name__}",
                "type: loss_fn=torch.nn.functional.cross_entropy",
            )
        if isinstance(batch, Tensor | Mapping | str) or not isinstance(batch, Sequence) or len(batch) != 2:
            got = "none" if batch is None else f"a {type(batch).__name__}"
            got += f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise InputError("a batch (inputs, targets)", got, "type: batch=(inputs, targets)")
        inputs, targets = tree_map(_ordinary, tuple(batch))
        lengths = [len(each) for each in tensors_in(inputs) if each.ndim]
        if not lengths or not lengths[0]:
            raise InputError("inputs with at least one sample", "none", "type: batch=(inputs, targets)")
        return cls(inputs, targets, loss_fn, lengths[0])

    def call(self) -> Call:
        """The forward pass on it, from where the random generators stand now."""
        if isinstance(self.inputs, Mapping):
            return record_call((), self.inputs)
        return record_call(tuple(self.inputs) if isinstance(self.inputs, tuple | list) else (self.inputs,), {})

    def can_be_cut(self, count: int) -> bool:
        """Whether there are samples for so many parts, and all targets count them.

        Args:
            count: of parts.
        """
        return self.samples >= _FEWEST * count and {self.samples} >= self._lengths

    @property
    def _lengths(self) -> set[int]:
        """Of the targets, but for scalars."""
        return {len(each) for each in tensors_in(self.targets) if each.ndim}

    def parts(self, count: int, fix: str) -> tuple[LabelledBatch, ...]:
        """Disjoint equal parts in the order of the samples, without the odd samples at the end.

        Tensors among the inputs that are not as long as the first of them are handed on whole.

        Args:
            count: of parts.
            fix: what to do where that cannot be.

        Raises:
            InputError: too few samples, or targets of another length than the inputs.
        """
        if not self.can_be_cut(count):
            lengths = sorted(self._lengths | {self.samples})
            raise InputError(
                f"a batch of {_FEWEST * count} samples or more, to be cut into {count} parts along the first axis of "
                "inputs and targets",
                f"lengths {', '.join(map(str, lengths))}" if lengths[1:] else f"{lengths[0]}",
                fix,
            )
        size = self.samples // count

        def part(start: int) -> LabelledBatch:
            def cut(leaf: Any) -> Any:
                counts = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == self.samples
                return leaf[start : start + size] if counts else leaf

            inputs, targets = tree_map(cut, (self.inputs, self.targets))
            return replace(self, inputs=inputs, targets=targets, samples=size)

        return tuple(part(start) for start in range(0, count * size, size))

    def loss(self, output: Any) -> Tensor:
        """The loss of an output.

        Args:
            output: of the model, or tensors in its place.

        Returns:
            One number without axes.

        Raises:
            InputError: it needs targets that are missing, or is no scalar.
        """
        try:
            loss = self.loss_fn(output, self.targets)
        except Exception as error:
            if self.targets is not None:
                raise
            raise InputError(
                "targets for the loss", f"None, with which it fails: {error}", "type: batch=(inputs, targets)"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise InputError(
                "a loss that is one number, as a tensor", got, "type: loss_fn=lambda o, t: mine(o, t).mean()"
            )
        return loss.reshape(())

    def traced_loss(self, output: Any) -> Tensor:
        """The loss of an output that has a graph.

        Args:
            output: of the model, or tensors in its place.

        Returns:
            One number with a graph.

        Raises:
            InputError: as `loss`; or nothing that is trained leads to it.
        """
        loss = self.loss(output)
        if not loss.requires_grad:
            raise InputError(
                "a loss that the trained parameters can be differentiated through to",
                "one without a graph",
                "look for .detach(), .item(), argmax or torch.no_grad() on the way to the loss",
            )
        return loss

    def refuse_random(self, model: nn.Module, output: Any, again: Callable[[], Any]) -> None:
        """Refuse a forward that draws what cannot be put back.

        Torch's own modules draw from torch's generators only, so a model of nothing else need not be asked.

        Args:
            model: the model.
            output: of a forward.
            again: repeats that forward.

        Raises:
            InputError: it gave something else.
        """
        if all(type(module).forward.__module__.startswith(("torch.", "holdfast.")) for module in model.modules()):
            return
        first, second = tensors_in(output), tensors_in(again())
        if len(first) == len(second) and all(map(_alike, first, second)):
            return
        raise InputError(
            "a forward pass that gives the same output when it is repeated",
            "another output from the same parameters, inputs and random state",
            "draw from torch's, Python's or NumPy's global generator, or keep yours as an attribute of the module",
        )


def gradients_of(loss: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients of a loss, whose graph is gone afterwards.

    Args:
        loss: with its graph.
        leaves: tensors that it was made with.

    Returns:
        One for each; `None` where the loss does not depend on it.

    Raises:
        InputError: an operation on the way cannot be differentiated, or only by `backward()`.
    """
    try:
        return torch.autograd.grad(loss, leaves, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        if isinstance(error, torch.OutOfMemoryError):
            raise
        if "use_reentrant=True" in text or "Checkpointing is not compatible" in text:
            raise reentrant_checkpoint() from error
        raise InputError(
            "a forward pass that can be differentiated",
            f"{type(error).__name__}: {text.splitlines()[0] if text else 'without a reason'}",
            "replace that operation, or freeze the layers before it",
        ) from error


def reentrant_checkpoint() -> InputError:
    """What to say of a checkpoint whose gradients come only by `backward()`, into `.grad` of whatever took part."""
    return InputError(
        "operations that give their gradient when asked",
        "torch.utils.checkpoint with use_reentrant=True, which only backward() can go through",
        "type: torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)",
    )


def _ordinary(leaf: Any) -> Any:
    """What was made in inference mode cannot be saved for a backward pass."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


def _alike(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding: sums on a GPU come in any order."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    difference = (a.detach() - b.detach()).abs().nan_to_num().max() if a.numel() else torch.zeros(())
    return float(difference) <= torch.finfo(a.dtype).eps ** 0.5 * float(
        a.detach().abs().nan_to_num().max() if a.numel() else 0
    )
